"""Measures the cost of a batch on this machine and caches it.

One calibration serves all trials that prepare the same batches for the same step. Its name is a
hash of everything that decides the cost of a batch, and of nothing that a forecast can vary. The
hash covers hardware, kernel, torch, the clips and how they are read, features, augmentation,
format, batch size, device and threads. It excludes the number of workers, their prefetch and the
size of /dev/shm. The same name means the same costs, so a sweep that is launched again measures
nothing.

A calibration runs in a process tree like that of a trial. Its loader can fail in a way that is a
result only for a trial: /dev/shm too small, out of memory, or no end. The sweep then continues, and
the trials are uncalibrated: they run, and only their /dev/shm requirement is forecast. The same
happens where other programs kept the cores busy. Their influence is measured with every figure, and
a disturbed figure is neither used nor cached (speech/calibration/undisturbed_rounds.py).
"""

import functools
import hashlib
import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from speech.atomic_files import replace_file
from speech.byte_sizes import format_size
from speech.cache_folder import cache_dir
from speech.calibration.agreement import Disagreement
from speech.calibration.costs import Calibration
from speech.calibration.undisturbed_rounds import MachineBusy
from speech.config import RuntimeSettings, Trial, TrialConfig
from speech.cpu import cpu_model
from speech.shapes import batch_bytes, dataset_bytes
from speech.shm_usage import shm_usage
from sweeps.config.plan import TrialSpec
from sweeps.host.node import Log, Node, PreflightError
from sweeps.host.other_programs import ProgramWatch
from sweeps.sandbox.isolation import ForkServer, Record, Task
from sweeps.sandbox.outcome import classify
from sweeps.trial_states import Outcome

# Part of every name: raise it to measure the same batches on the same machine again
COSTS_VERSION = 8
# Packages that decode, collate and compute
PACKAGES = ("torch", "torchvision", "torchaudio", "numpy", "pillow", "soundfile")
MAX_BATCHES_IN_SHM = 6  # most batches that a calibration's loaders have in /dev/shm at once
PRIVATE_SHM_BATCHES = 16  # number of batches that fit into a private /dev/shm
TIMEOUT_S = 300.0  # a minute is usual; reads of a slow drive take longer
# Outcomes that do not stop a sweep
LOADER_OUTCOMES = (Outcome.SHM_EXHAUSTED, Outcome.OOM, Outcome.TIMEOUT)


class CalibrationRequest(NamedTuple):
    """A calibration that several trials can share."""

    name: str  # 16 hex digits
    config: TrialConfig  # the configuration of one of these trials
    runtime: RuntimeSettings

    def __str__(self) -> str:
        return f"{self.config.loader.format}, batches of {self.config.loader.batch_size}"


def required_calibrations(
    trials: Iterable[TrialSpec],
    runtimes: Mapping[str, RuntimeSettings],
    fingerprints: Mapping[str, str],
    node: Node,
) -> dict[str, CalibrationRequest]:
    """Returns the calibration that a trial's forecast requires, by trial id.

    Trials without an entry in `runtimes` have none. Neither have trials that learn on several
    ranks, because the exchange of their gradients is not measured.

    `runtimes` maps a trial's id to its runtime settings. `fingerprints` maps Corpus.selection_key()
    to the fingerprint of the corpus.
    """
    return {
        trial.trial_id: CalibrationRequest(
            calibration_name(
                trial.config, settings, fingerprints[trial.config.corpus.selection_key()], node
            ),
            trial.config,
            settings,
        )
        for trial in trials
        if (settings := runtimes.get(trial.trial_id))
        and (trial.config.device.ranks == 1 or node.device(trial.config) == "simulated")
    }


def calibration_name(
    config: TrialConfig, runtime: RuntimeSettings, fingerprint: str, node: Node
) -> str:
    """Returns the hash of everything that decides the cost of a batch of `config` on `node`."""
    cores = node.cores_of(runtime.cpus)
    quota = [f"{cores:g} of them"] if cores != len(runtime.cpus or node.cpus) else []
    hashed = {
        "measured": COSTS_VERSION,
        "machine": [
            platform.node(),
            cpu_model(),
            len(runtime.cpus or node.cpus),
            platform.release(),
            *quota,
        ],
        "packages": _package_versions(),
        "corpus": [
            fingerprint,
            config.corpus.seconds,
            config.corpus.cache,
            config.corpus.read_latency_s,
        ],
        "features": config.features.model_dump(mode="json"),
        "augment": config.augment.model_dump(mode="json"),
        "loader": config.loader.model_dump(
            mode="json", include={"format", "batch_size", "start_method"}
        ),
        "device": _describe_device(config, node),
        "runtime": runtime.model_dump(mode="json", exclude={"cpus"}),
    }
    return hashlib.sha256(json.dumps(hashed, sort_keys=True, allow_nan=False).encode()).hexdigest()[
        :16
    ]


def _describe_device(config: TrialConfig, node: Node) -> list[str]:
    """Returns what decides the cost of a step beside the runtime settings.

    On CUDA it is the GPU, and whether batches are copied from pinned memory.
    """
    device = node.device(config)
    if device != "cuda":
        return [device]
    return [device, node.gpus[0], "pinned" if config.loader.pin_memory else "pageable"]


@functools.cache
def _package_versions() -> list[str]:
    """Returns the versions of PACKAGES.

    They are read once per process: a thousand names would read the metadata for seconds.
    """
    return [version(name) for name in PACKAGES]


def measure_all(
    fork_server: ForkServer,
    requests: Sequence[CalibrationRequest],
    private: bool,
    log_file: Path,
    log: Log,
) -> dict[str, Calibration]:
    """Measures and caches calibrations; returns them by name.

    A calibration that fails with one of LOADER_OUTCOMES is absent from the result, and so are those
    that other programs disturbed. `private` means that it is measured in a /dev/shm of its own, at
    least as large as the machine's. Raises PreflightError if the machine cannot run the calibration
    or the trials.
    """
    calibrations: dict[str, Calibration] = {}
    try:
        for request in requests:
            if calibration := _measure(fork_server, request, private, log_file, log):
                calibrations[request.name] = calibration
    except MachineBusy as busy:  # the next request would wait for the same programs
        names = ", ".join(str(one) for one in requests if one.name not in calibrations)
        log(
            f"uncalibrated: the machine was busy: {busy}. Trials run without a forecast ({names});"
            " the next launch calibrates again"
        )
    return calibrations


def load_cached(names: Iterable[str]) -> dict[str, Calibration]:
    """Returns those calibrations of `names` that are in the cache, by name."""
    return {name: calibration for name in names if (calibration := _load(name))}


def _load(name: str) -> Calibration | None:
    """Reads a calibration from the cache; returns None if its file is missing or corrupt."""
    try:
        return Calibration.model_validate_json(_file(name).read_bytes())
    except (OSError, ValueError):
        return None


def save_calibration(name: str, calibration: Calibration) -> None:
    """Writes a calibration to the cache; the file appears there complete or not at all."""
    with replace_file(_file(name)) as unfinished:
        unfinished.write_text(calibration.model_dump_json(indent=1))


def _file(name: str) -> Path:
    """Returns the path of a calibration in the cache."""
    return cache_dir() / "calibrations" / f"{name}.json"


def _measure(
    fork_server: ForkServer, request: CalibrationRequest, private: bool, log_file: Path, log: Log
) -> Calibration | None:
    """Measures and caches a calibration; logs how long it took, or why it failed; None then.

    Raises MachineBusy, which names the programs.
    """
    batch, usage = _batch_bytes(request), shm_usage()
    required, free = (
        dataset_bytes(request.config) + MAX_BATCHES_IN_SHM * batch,
        usage.limit_bytes - usage.used_bytes,
    )
    if not private and required > free:
        log(
            f"{request} can't be calibrated: that needs {format_size(required)} of /dev/shm, and"
            f" {format_size(free)} is free"
        )
        return None
    log(f"calibrating {request}: measured once on this machine, in about a minute")
    programs = ProgramWatch()
    task = calibration_task("calibrate", request, private, log_file.parent)
    log_file.unlink(missing_ok=True)
    *records, ending = fork_server.run(task, log_file, TIMEOUT_S)
    error = next((record for record in records if record["kind"] == "error"), None)
    result = next((record for record in records if record["kind"] == "calibration"), None)
    if result and not error and ending["status"] == 0:
        log_file.unlink(missing_ok=True)
        return _accept(request, result["calibration"], log)
    if error and error["type"] == MachineBusy.__name__:
        log_file.unlink(missing_ok=True)
        seen = programs.describe()
        raise MachineBusy(f"{error['message']}{seen and f', most of all {seen}'}")
    if error and error["type"] == Disagreement.__name__:
        log(f"{request} is uncalibrated, as two figures contradict each other: {error['message']}")
    else:
        _log_failure(request, error, ending, log_file, log)
    return None


def calibration_task(name: str, request: CalibrationRequest, private: bool, folder: Path) -> Task:
    """Returns the task with this name of speech/tasks.py, in a process tree like a trial's."""
    runtime = request.runtime
    trial = Trial(config=request.config, seed=0, runtime=runtime, folder=str(folder))
    size = max(shm_usage().limit_bytes, PRIVATE_SHM_BATCHES * _batch_bytes(request))
    return Task(
        name, trial.model_dump(), private, size if private else None, runtime.cpus, runtime.threads
    )


def _batch_bytes(request: CalibrationRequest) -> int:
    """Returns the size of a batch in /dev/shm."""
    return batch_bytes(request.config, request.config.loader.batch_size)


def _accept(request: CalibrationRequest, measured: Record, log: Log) -> Calibration | None:
    """Returns the calibration and caches it; None if it is illegal."""
    try:
        calibration = Calibration.model_validate(measured)
    except ValidationError as problem:
        first = problem.errors()[0]
        field = ".".join(map(str, first["loc"]))
        log(
            f"calibrating {request} measured an impossible cost, so its trials are uncalibrated:"
            f" {field} is {first['input']!r}"
        )
        return None
    save_calibration(request.name, calibration)
    log(f"calibrated {request} in {calibration.took_s:.0f} s")
    return calibration


def _log_failure(
    request: CalibrationRequest, error: Record | None, ending: Record, log_file: Path, log: Log
) -> None:
    """Logs why a calibration failed. Raises PreflightError unless it is one of LOADER_OUTCOMES.

    `error` and `ending` are the error record, if there is one, and the exit record.
    """
    if error and error["type"] == "Killed" and ending.get("oom_kills"):
        error = None  # the kernel killed it, which is no error of the data set
    ended = classify(error, ending, None, log_file.read_text(errors="replace"))
    if ended.outcome not in LOADER_OUTCOMES:
        raise PreflightError(
            f"calibrating {request} failed: {ended.evidence}. Write calibrate: false to run"
            f" without forecasts. Its output is in {log_file}."
        )
    why = (
        f"not finished after {TIMEOUT_S:.0f} s"
        if ended.outcome == Outcome.TIMEOUT
        else ended.evidence
    )
    log(f"calibrating {request} failed, so its trials are uncalibrated: {why}")
