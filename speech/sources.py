"""Where a corpus comes from: config.Corpus -> the folder that holds <word>/<clip>.wav.

A configured path is used as it is. Otherwise the folder lies in cache_dir()/corpora and is made on first use: the synthetic corpus is
spoken, the official archive is downloaded. It appears there complete or not at all, and one process makes it while others wait.
"""

import fcntl
import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from speech import synthetic
from speech.config import Corpus, cache_dir

Report = Callable[[str], None]


class CorpusError(ValueError):
    """The corpus can't be used as configured. The message names every fault and says how to mend it."""


def obtain(config: Corpus, report: Report) -> Path:
    """The folder that holds <word>/<clip>.wav: the configured one, or one in the cache that is spoken or downloaded on first use."""
    if config.path is not None:
        root = Path(config.path).expanduser().resolve()
        if not root.is_dir():
            raise CorpusError(f"corpus.path: there is no folder {root}. It is to hold <word>/<clip>.wav.")
        kaggle = root / "train" / "audio"  # the unpacked challenge
        return kaggle if kaggle.is_dir() else root
    if config.name == "synthetic":
        clips = _spoken_clips(config)
        return _cached(f"synthetic-{synthetic.corpus_key(clips, config.seconds)}", lambda folder: _speak(folder, clips, config, report))
    archive = f"speech_commands_v0.0{config.version[1]}"
    return _cached(archive, lambda folder: _download(folder, archive, report))


def _spoken_clips(config: Corpus) -> dict[str, int]:
    """word -> clips to speak: config.clips shared out over the words, and so many of other words that validation has `unknown` of them."""
    words = config.words or []
    clips = {word: config.clips // len(words) + (rank < config.clips % len(words)) for rank, word in enumerate(words)}
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
    """The official archive, checked against its SHA-256 by torchaudio, unpacked beside `folder` and renamed when complete."""
    from torchaudio.datasets import SPEECHCOMMANDS

    report(f"downloading {archive}.tar.gz (1.4 GB for v1, 2.3 GB for v2) once, into {folder}")
    try:
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{archive}.") as unfinished:
            SPEECHCOMMANDS(folder.parent, url=archive, folder_in_archive=Path(unfinished).name, download=True)
            (Path(unfinished) / archive).rename(folder)
    except (OSError, RuntimeError) as error:
        raise CorpusError(
            f"{archive}.tar.gz can't be downloaded ({error}). Run this once where there is network, or set corpus.path to a folder that "
            "holds <word>/<clip>.wav, or write corpus.name: synthetic, which needs no network."
        ) from None
    (folder.parent / f"{archive}.tar.gz").unlink()


def _cached(name: str, make: Callable[[Path], None]) -> Path:
    """cache_dir()/corpora/name, made on first use by one process while others wait."""
    folder = cache_dir() / "corpora" / name
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.with_name(f"{name}.lock")):
            if not folder.is_dir():
                make(folder)
    return folder


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # let go when the file closes, or its process dies
        yield
