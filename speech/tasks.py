"""What can be asked of a process that has torch: train a trial, prepare a corpus, find the fastest precision, read the test split.

Each task takes JSON arguments, says what happened through `emit`, and raises what goes wrong. The process that runs it is isolated by
its caller; nothing here knows where it runs.
"""

from collections.abc import Callable
from typing import Any

from speech import accelerator, corpora, foreign
from speech.calibrate import calibrate_trial
from speech.config import Trial, TrialConfig
from speech.evaluation import read_test_split
from speech.loading import make_loader, prepare_forms
from speech.model import build
from speech.shapes import picture_shape
from speech.timing import Gauge
from speech.train import fit

Arguments = dict[str, Any]
Emit = Callable[[dict[str, Any]], None]


def train(arguments: Arguments, emit: Emit, gauge: Gauge) -> None:
    fit(Trial.model_validate(arguments), emit, gauge)


def prepare(arguments: Arguments, emit: Emit, gauge: Gauge) -> None:
    """Makes what trials of this TrialConfig read from the cache, and tries what else they open. Progress leaves as `say` records."""
    config = TrialConfig.model_validate(arguments)

    def say(line: str) -> None:
        emit({"kind": "say", "line": line})

    corpus = corpora.prepare(config.corpus, say)
    prepare_forms(config, corpus, say)
    make_loader(config, corpus, "training", 0)
    build(len(corpus.labels), picture_shape(config)[0], config.model.weights)


def probe(arguments: Arguments, emit: Emit, gauge: Gauge) -> None:
    """The fastest precision for this configuration. Arguments: `config` (a TrialConfig) and `threads`."""
    config = TrialConfig.model_validate(arguments["config"])
    pinned, line = accelerator.fastest(config, picture_shape(config), arguments["threads"])
    emit({"kind": "probe", "pinned": pinned.model_dump(), "line": line})


def calibrate(arguments: Arguments, emit: Emit, gauge: Gauge) -> None:
    """What a batch costs this Trial here, as a `calibration` record."""
    trial = Trial.model_validate(arguments)
    emit({"kind": "calibration", "calibration": calibrate_trial(trial).model_dump()})


def advise(arguments: Arguments, emit: Emit, gauge: Gauge) -> None:
    """What a batch of another project's loader costs here. Arguments and records: speech/foreign.py."""
    foreign.advise(arguments, emit)


def test(arguments: Arguments, emit: Emit, gauge: Gauge) -> None:
    """The test split, read by the members of one trial's ensemble. Arguments: a Trial, its folder holding the snapshots."""
    emit({"kind": "test"} | read_test_split(Trial.model_validate(arguments)))


def look(arguments: Arguments, emit: Emit, gauge: Gauge) -> None:
    """Nothing but a look around: which devices there are."""
    emit({"kind": "look", "gpus": accelerator.gpu_names()})


Run = Callable[[Arguments, Emit, Gauge], None]
TASKS: dict[str, Run] = {task.__name__: task for task in (train, prepare, probe, calibrate, advise, test, look)}
