"""Going on with a trial that was interrupted: from its last cycle end to the bit-equal result of a trial that was not.

The one idea is that a cycle end is a small state. Every random draw for a clip comes from (seed, epoch, clip) and the order of an epoch
from (seed, epoch), so what later epochs need of earlier ones is the network, its momentum, the loss scaler and torch's random state; and
the trial's summary needs what was measured so far. Three kinds of files keep that in the trial's folder, each written whole or not at all:

    snapshot-<cycle>.pt   weights and BatchNorm statistics of every member; training goes on from the last (speech/snapshots.py)
    learned-<epochs>.pt   momentum, scaler, random state, and the members' predictions, after so many epochs
    progress.json         written last: the records so far, the digests of the files above, and whose they are

So a trial killed between two of these writes goes on from the cycle end before. A state that is torn, or was made by another torch, on
another device or with other parameters, is not used: the trial starts over, and says why.
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from speech import accelerator
from speech.config import Trial
from speech.corpora import PreparedCorpus
from speech.features import save_atomically, whole_file
from speech.learner import Learner
from speech.snapshots import Ensemble

PROGRESS = "progress.json"
# Of a record; its raw steps were told by the attempt that took them
RETOLD = ("kind", "epoch", "warmup", "cycle", "file", "metrics", "disagreements")

Record = dict[str, Any]


@dataclass
class Progress:
    """What a trial has behind it."""

    records: list[Record] = field(default_factory=list)  # of epochs and snapshots in order, cut to RETOLD
    ensemble: Ensemble | None = None
    started_over: str | None = None  # why what an interrupted attempt had left was not used

    def noted(self, record: Record) -> Record:
        """The record, which counts as behind the trial from now on."""
        self.records.append({name: record[name] for name in RETOLD if name in record})
        return record

    @property
    def epochs(self) -> list[dict[str, float]]:
        """The metrics of every epoch."""
        return [record["metrics"] for record in self.records if record["kind"] == "epoch"]

    @property
    def members(self) -> list[str]:
        """The file of every snapshot."""
        return [record["file"] for record in self.records if record["kind"] == "snapshot"]

    def origin(self) -> Record:
        """For the setup record: `continued_epoch`, after how many epochs the trial goes on, or `started_over`, why it doesn't."""
        found = {"continued_epoch": len(self.epochs) or None, "started_over": self.started_over}
        return {name: value for name, value in found.items() if value is not None}


class Continuation:
    """Keeps a learner's progress at cycle ends, and takes up what an interrupted attempt has kept in the same folder."""

    def __init__(self, trial: Trial, corpus: PreparedCorpus, device: str, learner: Learner):
        self.folder, self.learner = Path(trial.folder), learner
        self.whose = _whose(trial, corpus, device)
        self.digests: dict[str, str | None] = {}  # of the files that the progress rests on, by name

    def take_up(self) -> Progress:
        """Restores the learner and torch's random state to the last cycle end; where none was kept, both stay as they are."""
        file = self.folder / PROGRESS
        if not file.exists():
            return Progress()
        try:
            kept = json.loads(file.read_text("utf-8"))
        except ValueError:
            kept = None
        if why := self._unusable(kept):
            file.unlink()  # before any file that it names is written anew
            return Progress(started_over=why)
        self.digests = kept["files"]
        progress = Progress(kept["records"])
        progress.ensemble = self._restore(progress)
        return progress

    def keep(self, progress: Progress) -> None:
        """To be called at a cycle end, when its snapshot is written and its record noted."""
        learner, ensemble, name = self.learner, progress.ensemble, _learned(progress)
        assert ensemble is not None  # the snapshot's predictions are in it
        learned = {
            "optimizer": learner.optimizer.state_dict(),
            "scaler": learner.scaler.state_dict(),
            "random": torch.get_rng_state(),
            "labels": ensemble.labels,
            "members": ensemble.members,
        }
        save_atomically(learned, self.folder / name)
        members = progress.members
        fresh = {new: _digest(self.folder / new) for new in (members[-1], name)}
        before, self.digests = self.digests, {file: (self.digests | fresh)[file] for file in (*members, name)}
        with whole_file(self.folder / PROGRESS) as out:
            out.write(json.dumps({"whose": self.whose, "files": self.digests, "records": progress.records}).encode())
        for superseded in before.keys() - self.digests.keys():
            (self.folder / superseded).unlink(missing_ok=True)

    def _unusable(self, kept: Any) -> str | None:
        if not isinstance(kept, dict) or kept.keys() != {"whose", "files", "records"}:
            return f"{PROGRESS} of an interrupted attempt is torn"
        if others := [name for name, value in self.whose.items() if kept["whose"].get(name) != value]:
            return f"what an interrupted attempt kept is of another {', '.join(others)}"
        torn = [name for name, digest in kept["files"].items() if _digest(self.folder / name) != digest]
        return f"{', '.join(torn)} of an interrupted attempt is torn or gone" if torn else None

    def _restore(self, progress: Progress) -> Ensemble:
        learner = self.learner
        weights, learned = (
            torch.load(self.folder / name, map_location="cpu", weights_only=True) for name in (progress.members[-1], _learned(progress))
        )
        learner.model.load_state_dict(weights)
        learner.optimizer.load_state_dict(learned["optimizer"])
        learner.scaler.load_state_dict(learned["scaler"])
        torch.set_rng_state(learned["random"])
        return Ensemble(learned["labels"], learned["members"])


def _learned(progress: Progress) -> str:
    return f"learned-{len(progress.epochs)}.pt"


def _digest(file: Path) -> str | None:
    if not file.exists():
        return None
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _whose(trial: Trial, corpus: PreparedCorpus, device: str) -> Record:
    """All that decides what a trial learns, as JSON has it; not where its clips lie."""
    return {
        "torch": torch.__version__,
        "device": accelerator.name_of(device, trial.config.device),
        "corpus": corpus.fingerprint,
        "parameters": trial.config.model_dump(mode="json", exclude={"corpus": {"path"}}),
        "seed": trial.seed,
        "warmup_epochs": trial.warmup_epochs,
        "pinned": trial.pinned.model_dump(mode="json"),
    }
