"""Obtains a corpus: Corpus -> the folder that holds <word>/<clip>.wav.

A configured path is used unchanged. Otherwise the folder lies in cache_dir()/corpora and is created
on first use: the synthetic corpus is spoken, the official archive is downloaded. The folder appears
complete or not at all. One process creates it while others wait.
"""

import fcntl
import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from speech import synthetic
from speech.cache_folder import cache_dir
from speech.corpus_config import Corpus

Report = Callable[[str], None]


class CorpusError(ValueError):
    """The corpus can't be used as configured. The message names every fault and its remedy."""


def obtain_corpus(config: Corpus, report: Report) -> Path:
    """Returns the folder that holds <word>/<clip>.wav.

    It is the configured folder, or one in the cache that is spoken or downloaded on first use.
    Raises CorpusError.
    """
    if config.path is not None:
        root = Path(config.path).expanduser().resolve()
        if not root.is_dir():
            raise CorpusError(
                f"corpus.path: there is no folder {root}. It must hold <word>/<clip>.wav."
            )
        kaggle_root = root / "train" / "audio"  # layout of the unpacked Kaggle challenge
        return kaggle_root if kaggle_root.is_dir() else root
    if config.name == "synthetic":
        clips = _clips_per_word(config)
        name = f"synthetic-{synthetic.corpus_key(clips, config.seconds)}"
        return _obtain_cached(name, lambda folder: _speak(folder, clips, config, report), report)
    archive = f"speech_commands_v0.0{config.version[1]}"
    return _obtain_cached(archive, lambda folder: _download(folder, archive, report), report)


def _clips_per_word(config: Corpus) -> dict[str, int]:
    """Returns word -> number of clips to speak.

    config.clips are divided evenly over the words. Other words get enough clips that validation has
    config.unknown of them.
    """
    words = config.words or []
    clips = {
        word: config.clips // len(words) + (rank < config.clips % len(words))
        for rank, word in enumerate(words)
    }
    others = [word for word in synthetic.OTHER_WORDS if word not in clips]
    if config.unknown and others:
        held_out = math.ceil(config.unknown / len(others))
        clips |= dict.fromkeys(others, math.ceil(held_out / min(synthetic.SHARES.values())))
    return clips


def _speak(folder: Path, clips: dict[str, int], config: Corpus, report: Report) -> None:
    report(f"speaking {sum(clips.values()):,} clips of {len(clips)} words once, into {folder}")
    try:
        synthetic.speak_corpus(folder, clips, config.seconds)
    except synthetic.SynthesisError as error:
        raise CorpusError(str(error)) from None


def _download(folder: Path, archive: str, report: Report) -> None:
    """Downloads the official archive, unpacks it beside `folder` and renames it when complete.

    torchaudio checks its SHA-256. Raises CorpusError where the download fails.
    """
    from torchaudio.datasets import SPEECHCOMMANDS

    report(f"downloading {archive}.tar.gz (1.4 GB for v1, 2.3 GB for v2) once, into {folder}")
    try:
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{archive}.") as unfinished:
            SPEECHCOMMANDS(
                folder.parent, url=archive, folder_in_archive=Path(unfinished).name, download=True
            )
            (Path(unfinished) / archive).rename(folder)
    except (OSError, RuntimeError) as error:
        raise CorpusError(
            f"{archive}.tar.gz can't be downloaded ({error}). Run this once where there is network,"
            " or set corpus.path to a folder that holds <word>/<clip>.wav, or write corpus.name:"
            " synthetic, which needs no network."
        ) from None
    (folder.parent / f"{archive}.tar.gz").unlink()


def _obtain_cached(name: str, make: Callable[[Path], None], report: Report) -> Path:
    """Returns the folder cache_dir()/corpora/`name`, and creates it on first use.

    One process calls `make` while others report that they wait.
    """
    folder = cache_dir() / "corpora" / name
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _hold_lock(folder.with_name(f"{name}.lock"), report):
            if not folder.is_dir():
                make(folder)
    return folder


@contextmanager
def _hold_lock(path: Path, report: Report) -> Iterator[None]:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report(
                f"waiting for another process that creates {path.with_suffix('')} and locks {path}"
            )
            fcntl.flock(file, fcntl.LOCK_EX)  # released when the file closes, or its process dies
        yield
