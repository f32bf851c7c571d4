"""Continues an interrupted trial from its last cycle end.

The result is bit-equal to that of an uninterrupted trial. The design relies on the small state at a
cycle end. Every random draw for a clip follows from (seed, epoch, clip), and the order of an epoch
from (seed, epoch). Later epochs therefore need only the network, its momentum, the loss scaler and
torch's random state. The trial's summary needs the measurements of all epochs so far. Three kinds
of files store this state in the trial's folder, and all of them are written atomically:

    snapshot-<cycle>.pt   weights and BatchNorm statistics of every member (speech/snapshots.py);
                          training continues from the last one
    learned-<epochs>.pt   momentum, scaler, random state, and the members' predictions,
                          after this number of epochs
    progress.json         written last: the records so far, the digests of the files above,
                          and the identity of the trial that wrote them

A trial killed between two of these writes therefore continues from the previous cycle end. The
state is ignored if it is corrupt, or if another torch version, device or parameter set wrote it.
The trial then restarts and reports the reason.
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from speech import accelerator
from speech.atomic_files import open_atomically, save_atomically
from speech.config import Trial
from speech.learner import Learner
from speech.prepared_corpus import PreparedCorpus
from speech.snapshots import Ensemble

PROGRESS = "progress.json"
# Keys of a record that are stored; the interrupted attempt has already emitted its raw steps
STORED_KEYS = ("kind", "epoch", "warmup", "cycle", "file", "metrics", "disagreements")

Record = dict[str, Any]


@dataclass
class Progress:
    """Holds the epochs and snapshots that a trial has completed."""

    records: list[Record] = field(default_factory=list)  # of epochs and snapshots, in order
    ensemble: Ensemble | None = None
    started_over: str | None = None  # why an interrupted attempt's state was ignored

    def add_record(self, record: Record) -> Record:
        """Adds a record of a completed epoch or snapshot, and returns it unchanged."""
        self.records.append({name: record[name] for name in STORED_KEYS if name in record})
        return record

    @property
    def epochs(self) -> list[dict[str, float]]:
        """Metrics of every completed epoch, in order."""
        return [record["metrics"] for record in self.records if record["kind"] == "epoch"]

    @property
    def snapshot_files(self) -> list[str]:
        """File names of all snapshots, in order."""
        return [record["file"] for record in self.records if record["kind"] == "snapshot"]

    def origin(self) -> Record:
        """Returns what the setup record reports about an interrupted attempt.

        `continued_epoch` is the number of epochs after which the trial continues; `started_over`
        is the reason why it does not continue. A key that does not apply is absent.
        """
        origin = {"continued_epoch": len(self.epochs) or None, "started_over": self.started_over}
        return {name: value for name, value in origin.items() if value is not None}


class Continuation:
    """Saves a learner's progress at cycle ends, and restores that of an interrupted attempt.

    Both attempts use the same folder.
    """

    def __init__(self, trial: Trial, corpus: PreparedCorpus, device: str, learner: Learner):
        self.folder, self.learner = Path(trial.folder), learner
        self.identity = _identity(trial, corpus, device)
        self.digests: dict[str, str | None] = {}  # by file name, of the progress's files

    def restore(self, rank: int = 0) -> Progress:
        """Restores the learner and torch's random state to the last saved cycle end.

        Without a usable saved state both remain unchanged. Returns the restored progress. All ranks
        of a trial read the same state and come to the same result. Only rank 0 removes a defective
        one.
        """
        file = self.folder / PROGRESS
        try:
            saved = json.loads(file.read_text("utf-8"))
        except FileNotFoundError:
            return Progress()
        except ValueError:
            saved = None
        if defect := self._find_defect(saved):
            if rank == 0:
                file.unlink()  # before any file that it names is rewritten
            return Progress(started_over=defect)
        self.digests = saved["files"]
        progress = Progress(saved["records"])
        progress.ensemble = self._load_state(progress)
        return progress

    def save(self, progress: Progress) -> None:
        """Saves the progress at a cycle end.

        Call it after the cycle's snapshot has been written and its record has been added. Raises
        ValueError if the progress has no ensemble.
        """
        learner, ensemble, state_file = self.learner, progress.ensemble, _state_file(progress)
        if ensemble is None:
            raise ValueError(
                "progress can only be saved at a cycle's end, when the ensemble holds the"
                " snapshot's predictions"
            )
        learned = {
            "optimizer": learner.optimizer.state_dict(),
            "scaler": learner.scaler.state_dict(),
            "random": torch.get_rng_state(),
            "labels": ensemble.labels,
            "members": ensemble.members,
        }
        save_atomically(learned, self.folder / state_file)
        snapshots = progress.snapshot_files
        new_digests = {file: _digest(self.folder / file) for file in (snapshots[-1], state_file)}
        previous, self.digests = (
            self.digests,
            {file: (self.digests | new_digests)[file] for file in (*snapshots, state_file)},
        )
        with open_atomically(self.folder / PROGRESS) as out:
            out.write(
                json.dumps(
                    {"whose": self.identity, "files": self.digests, "records": progress.records}
                ).encode()
            )
        for superseded in previous.keys() - self.digests.keys():
            (self.folder / superseded).unlink(missing_ok=True)

    def _find_defect(self, saved: Any) -> str | None:
        """Returns why the saved state is unusable, or None if it is usable."""
        if not isinstance(saved, dict) or saved.keys() != {"whose", "files", "records"}:
            return f"{PROGRESS} of an interrupted attempt is corrupt"
        if differing := [
            name for name, value in self.identity.items() if saved["whose"].get(name) != value
        ]:
            return f"the checkpoint of an interrupted attempt has another {', '.join(differing)}"
        corrupt = [
            name for name, digest in saved["files"].items() if _digest(self.folder / name) != digest
        ]
        if corrupt:
            return f"{', '.join(corrupt)} of an interrupted attempt is corrupt or missing"
        weights = torch.load(
            self.folder / Progress(saved["records"]).snapshot_files[-1],
            map_location="cpu",
            weights_only=True,
        )
        if not all(
            value.isfinite().all() for value in weights.values() if value.is_floating_point()
        ):
            return "the weights of an interrupted attempt are not finite"
        return None

    def _load_state(self, progress: Progress) -> Ensemble:
        """Loads the saved state into the learner and into torch, and returns the ensemble."""
        learner = self.learner
        weights, learned = (
            torch.load(self.folder / name, map_location="cpu", weights_only=True)
            for name in (progress.snapshot_files[-1], _state_file(progress))
        )
        learner.model.load_state_dict(weights)
        learner.optimizer.load_state_dict(learned["optimizer"])
        learner.scaler.load_state_dict(learned["scaler"])
        torch.set_rng_state(learned["random"])
        return Ensemble(learned["labels"], learned["members"])


def _state_file(progress: Progress) -> str:
    """Returns the name of the file with the learner's state after the progress's epochs."""
    return f"learned-{len(progress.epochs)}.pt"


def _digest(file: Path) -> str | None:
    """Returns the SHA-256 digest of a file, or None if it does not exist."""
    if not file.exists():
        return None
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _identity(trial: Trial, corpus: PreparedCorpus, device: str) -> Record:
    """Returns everything that decides what a trial learns, as JSON values.

    The path of the clips is not part of it.
    """
    return {
        "torch": torch.__version__,
        "device": accelerator.device_name(device, trial.config.device),
        "corpus": corpus.fingerprint,
        "parameters": trial.config.model_dump(mode="json", exclude={"corpus": {"path"}}),
        "seed": trial.seed,
        "warmup_epochs": trial.warmup_epochs,
        "runtime": trial.runtime.model_dump(mode="json"),
    }
