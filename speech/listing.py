"""Lists the folder of a corpus: its clips by word, and all other files, counted by reason.

No file that a user may consider a clip is excluded silently. Every folder below the root is a word.
Every file below that folder, at any depth, is a clip of the word if its suffix is that of a format
that libsndfile reads.
"""

import os
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

NOISE_FOLDER = "_background_noise_"
READABLE_SUFFIXES = frozenset(
    (
        ".wav",
        ".wave",
        ".bwf",
        ".rf64",
        ".w64",
        ".flac",
        ".ogg",
        ".oga",
        ".opus",
        ".mp3",
        ".aif",
        ".aiff",
        ".aifc",
        ".au",
        ".snd",
        ".caf",
    )
)
UNREADABLE_SUFFIXES = frozenset(  # sound that libsndfile can't read, or that doesn't state its rate
    (
        ".m4a",
        ".aac",
        ".mp4",
        ".m4b",
        ".wma",
        ".amr",
        ".webm",
        ".mka",
        ".3gp",
        ".ra",
        ".ape",
        ".wv",
        ".mpc",
        ".ac3",
        ".spx",
        ".raw",
        ".pcm",
    )
)
CONVERT_HINT = "convert them, as by ffmpeg -i in{0} out.wav"
# kinds of files with a count of their own: a folder of numbered logs has thousands of extensions
MAX_KINDS = 20


class LeftOut(NamedTuple):
    """Files or folders of one kind that are not used."""

    what: str  # '30 .m4a files'
    number: int
    example: str
    mend: str = ""

    def __str__(self) -> str:
        return f"{self.number:,} {self.what} (as {self.example})" + (
            f": {self.mend}" if self.mend else ""
        )


@dataclass
class Listing:
    """The clips of a corpus folder, and the files and folders that are not used."""

    # '<word>/.../<clip>.wav' -> (size in bytes, mtime in ns), by path
    files: dict[str, tuple[int, int]] = field(default_factory=dict)
    left_out: list[LeftOut] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)  # folders of words that hold no clip

    def leave_out(self, what: str, example: str, mend: str = "") -> None:
        """Counts a file or folder of a kind; the first one is the kind's example."""
        kinds = {known.what for known in self.left_out}
        if what not in kinds and len(kinds) >= MAX_KINDS:
            what, mend = "files or folders of further kinds", ""
        for index, known in enumerate(self.left_out):
            if known.what == what:
                self.left_out[index] = known._replace(number=known.number + 1)
                return
        self.left_out.append(
            LeftOut(what, 1, example.encode("utf-8", "backslashreplace").decode(), mend)
        )


def list_files(root: Path) -> Listing:
    """Lists every clip below the folders of `root`, with background noise, and all other files.

    Raises OSError for a folder that can't be read.
    """
    listing = Listing()
    for entry in _sorted_entries(root):
        if not entry.is_dir():
            if _suffix(entry.name) in READABLE_SUFFIXES | UNREADABLE_SUFFIXES:
                listing.leave_out(
                    "sound files directly in the folder, under no word",
                    entry.name,
                    "put each into the folder of its word",
                )
        elif _exclude_folder(listing, entry, entry.name):
            continue
        else:
            files_before = len(listing.files)
            _list_folder(listing, entry.path, entry.name, (_folder_identity(entry),))
            if len(listing.files) == files_before:
                listing.empty.append(entry.name)
    listing.files = dict(sorted(listing.files.items()))
    return listing


def word_of(path: str) -> str:
    """Returns the word of a clip: the first folder of its path, in one Unicode form."""
    return unicodedata.normalize("NFC", path.partition("/")[0])


def _list_folder(
    listing: Listing, folder: str, prefix: str, ancestors: tuple[tuple[int, int], ...]
) -> None:
    """Adds the content of a folder to `listing`.

    `prefix` is the folder's path from the root. `ancestors` holds its own identity and those of the
    folders above it.
    """
    for entry in _sorted_entries(folder):
        path = f"{prefix}/{entry.name}"
        if entry.is_dir():
            if _exclude_folder(listing, entry, path):
                continue
            identity = _folder_identity(entry)
            if identity in ancestors:
                listing.leave_out("links to a folder that they lie in", path)
            else:
                _list_folder(listing, entry.path, path, (*ancestors, identity))
        elif entry.name.startswith("."):
            if _suffix(entry.name) in READABLE_SUFFIXES | UNREADABLE_SUFFIXES:
                listing.leave_out("hidden sound files", path)
        elif _suffix(entry.name) in READABLE_SUFFIXES:
            if not _is_utf8(entry.name):
                listing.leave_out("files whose names are not UTF-8", path, "rename them")
                continue
            try:
                status = entry.stat()
            except OSError:  # a broken link is a bad clip like any other
                status = entry.stat(follow_symlinks=False)
            listing.files[path] = status.st_size, status.st_mtime_ns
        elif (kind := _suffix(entry.name)) in UNREADABLE_SUFFIXES:
            listing.leave_out(f"{kind} files, which can't be read", path, CONVERT_HINT.format(kind))
        else:
            listing.leave_out(
                f"{kind} files, no sound by their names" if kind else "files without an extension",
                path,
            )


def _exclude_folder(listing: Listing, folder: os.DirEntry, path: str) -> bool:
    """Returns whether a folder's name excludes it from the words, and counts an excluded one."""
    if folder.name.startswith("."):
        listing.leave_out("hidden folders", path)
    elif folder.name.startswith("_") and path != NOISE_FOLDER:
        listing.leave_out(
            "folders whose names begin with _", path, "rename them if they hold clips"
        )
    elif not _is_utf8(folder.name):
        listing.leave_out("folders whose names are not UTF-8", path, "rename them")
    else:
        return False
    return True


def _sorted_entries(folder: str | Path) -> Iterable[os.DirEntry]:
    """Returns the entries of a folder by name, so that examples are the same on every machine."""
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _folder_identity(folder: os.DirEntry) -> tuple[int, int]:
    status = os.stat(folder.path)
    return status.st_dev, status.st_ino


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower() or (
        name.lower() if name.lower() in READABLE_SUFFIXES else ""
    )


def _is_utf8(name: str) -> bool:
    return name.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in name)
