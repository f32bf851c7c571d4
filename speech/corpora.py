"""Prepares the clips of training, validation and testing: Corpus -> PreparedCorpus.

Every corpus is a folder of <word>/<clip>.wav. The synthetic corpus is spoken into that layout, and
the official archive has it. One scanner (speech/corpus_scan.py) reads all corpora. Its result is
stored as a manifest (speech/manifests.py). The fingerprint depends on the content alone, so it is
the same on another machine and after a fresh copy.
"""

import contextlib

from speech.cache_folder import cache_dir
from speech.corpus_config import Corpus
from speech.corpus_scan import scan_corpus
from speech.listing import list_files
from speech.manifests import load_manifest, manifest_path, save_manifest
from speech.prepared_corpus import PreparedCorpus
from speech.sources import CorpusError, Report, obtain_corpus


def prepare_corpus(config: Corpus, report: Report = print) -> PreparedCorpus:
    """Obtains and checks the clips of a configuration, or reads its manifest (milliseconds).

    The first call writes the manifest. `report` receives a line before every step that takes time.
    Several processes may prepare the same corpus at once. Raises CorpusError.
    """
    try:
        root = obtain_corpus(config, report)
        listing = list_files(root)
        manifest = manifest_path(config, root, listing)
        if manifest.is_file():
            return load_manifest(root, manifest)
        corpus = scan_corpus(root, listing, config, report)
        with contextlib.suppress(OSError):  # without a manifest the next call only takes longer
            save_manifest(corpus, manifest)
    except OSError as error:
        raise CorpusError(
            f"corpus {config.name}: {error.filename}: {error.strerror}. Its folders must be"
            f" readable, and the cache {cache_dir()} writable. XDG_CACHE_HOME sets another cache."
        ) from error
    return corpus


def check_unchanged(corpus: PreparedCorpus, fingerprint: str) -> None:
    """Raises CorpusError where the corpus has changed since the trial was planned.

    An empty `fingerprint` means that the planned corpus is unknown; then nothing is checked.
    """
    if fingerprint not in ("", corpus.fingerprint):
        raise CorpusError(
            f"the clips of {corpus.root} have changed since the sweep was launched. Launch it"
            " again: trials with the new clips have other trial ids"
        )
