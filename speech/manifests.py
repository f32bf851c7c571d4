"""Stores prepared corpora as JSON under cache_dir()/manifests.

A manifest's name depends on the configuration and on the path, size and time of every file.
"""

import hashlib
import json
import os
import tempfile
from dataclasses import asdict
from pathlib import Path

from speech.account import Account
from speech.cache_folder import cache_dir
from speech.corpus_config import Corpus
from speech.listing import Listing
from speech.prepared_corpus import Clip, PreparedCorpus, Stretch
from speech.split_lists import list_paths

# part of a manifest's name: increment it when the same files and configuration give another corpus
_SCANNER_VERSION = 2


def manifest_path(config: Corpus, root: Path, listing: Listing) -> Path:
    """Returns the path of the manifest of these files, which may not exist yet."""
    lists = [
        (str(path), path.stat().st_size, path.stat().st_mtime_ns)
        for path in list_paths(root).values()
    ]
    listed = (listing.files, listing.left_out, listing.empty)
    key = hashlib.sha256(
        ascii((_SCANNER_VERSION, config.selection_key(), str(root), lists, listed)).encode()
    ).hexdigest()[:32]
    return cache_dir() / "manifests" / f"{key}.json"


def save_manifest(corpus: PreparedCorpus, manifest: Path) -> None:
    """Writes the manifest. It appears complete or not at all. Raises OSError."""
    manifest.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=manifest.parent, delete=False) as file:
        json.dump(asdict(corpus) | {"root": str(corpus.root)}, file)
    os.replace(file.name, manifest)


def load_manifest(root: Path, manifest: Path) -> PreparedCorpus:
    """Reads a corpus from its manifest. Raises OSError."""
    document = json.loads(manifest.read_text())
    clips = tuple(Clip(**clip) for clip in document["clips"])
    noise = tuple(Stretch(*stretch) for stretch in document["noise"])
    account = Account.from_document(document["account"])
    return PreparedCorpus(
        root,
        tuple(document["labels"]),
        clips,
        document["fingerprint"],
        tuple(document["skipped"]),
        noise,
        account,
    )
