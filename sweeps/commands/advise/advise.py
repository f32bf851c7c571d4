"""Measures the loader of any PyTorch project and recommends its number of workers on this machine.

Nothing is swept. The cost of one batch is measured with one worker at most, in a process tree of
its own (speech/calibration/external_loader.py), which takes about a minute. Every number of workers
is then forecast from this cost. The machine is locked meanwhile, as for a trial that runs alone.

    launch.py advise train:make_loader --step-s 0.025      the accelerator takes 25 ms a step
    launch.py advise train:make_loader --step train:step   step(batch) is timed
    launch.py advise train:make_loader -- --data folder    arguments that train.py reads
"""

import contextlib
import os
import re
import tempfile
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from speech.calibration.costs import Calibration
from speech.calibration.worker_memory import WorkerMemory
from sweeps import environment
from sweeps.commands.advise.costs_text import format_costs, format_introduction
from sweeps.commands.advise.failures import AdviceError, Attempt, raise_for
from sweeps.commands.advise.forecast_text import format_forecasts
from sweeps.commands.advise.loader_forecast import MeasuredLoader, free_shm_bytes
from sweeps.host import host_lock, hygiene
from sweeps.host.node import Log, Node
from sweeps.sandbox.cgroup import memory_available
from sweeps.sandbox.isolation import ForkServer, Record, Task
from sweeps.sandbox.stacks import TimedCalls, find_frames, format_frames

PATIENCE_S = 600.0  # the measurement of a loader stops after this time
PROGRESS_S = (90.0, 300.0)  # a measurement that takes longer than usual reports its position then
# Variables that the process tree sets for itself; the other project needs the user's values
VARIABLES = ("PYTHONPATH", "TMPDIR")
TARGET = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


@dataclass(frozen=True)
class AdviceRequest:
    """A request for advice, as given on the command line.

    Python searches `folder` first for modules. Raises AdviceError if the target or the step is not
    written as module:name.
    """

    target: str  # module:name
    folder: str
    batch_size: int | None = None  # for a function that returns a Dataset
    step: str | None = None  # module:name
    step_s: float | None = None
    run_ahead: int = 0  # steps that may be queued when the loop goes on, with step_s
    arguments: list[str] = field(default_factory=list)  # command line of the target's module
    environment: dict[str, str | None] = field(
        default_factory=lambda: {name: os.environ.get(name) for name in VARIABLES}
    )

    def __post_init__(self) -> None:
        for flag, target in (("advise", self.target), ("--step", self.step)):
            if target is None or (TARGET.fullmatch(target) and ".py:" not in target):
                continue
            file, _, name = target.partition(":")
            module = file.removesuffix(".py").replace("/", ".").strip(".")
            raise AdviceError(
                f"{flag} {target}: write it as module:name, as in"
                f" {module or 'train'}:{name or 'make_loader'}."
            )

    @property
    def with_step(self) -> bool:
        """Returns whether the cost of a training step is given or measured."""
        return self.step is not None or self.step_s is not None


def print_advice(request: AdviceRequest, log: Log) -> None:
    """Measures a loader and logs its costs, forecasts and the recommendation.

    It waits until it holds the machine alone: a trial beside the measurement would slow both down.
    Raises AdviceError if the loader is at fault, and PreflightError if this machine is.
    """
    with host_lock.acquire(
        exclusive=True,
        owner=f"advice on {request.target} (process {os.getpid()})",
        on_wait=lambda holder: log(f"{holder} holds this machine: measuring waits"),
    ):
        available_bytes = memory_available()  # before the measurement starts a training process
        loader, calibration = measure_loader(request, log)
        free_bytes = free_shm_bytes()
    log(f"\n{format_costs(loader, calibration, request.with_step)}\n")
    log(format_forecasts(loader, calibration, free_bytes, available_bytes))


def measure_loader(request: AdviceRequest, log: Log) -> tuple[MeasuredLoader, Calibration]:
    """Loads and measures the loader in a process tree of its own, on the machine's own /dev/shm.

    Raises AdviceError if the loader is at fault, and PreflightError if this machine is.
    """
    for line in Node.local().limits():
        log(line)
    others = hygiene.wait_until_idle(0.0).get("gpu_processes") if request.step else None
    if others:
        log(f"{others} other processes use the GPU, which may slow the step down.")
    calibration = None
    with (
        tempfile.TemporaryDirectory(prefix="advise-") as scratch,
        contextlib.closing(_start_fork_server(request)) as fork_server,
    ):
        attempt = Attempt(request.target, Path(scratch) / "log", PATIENCE_S)
        task = Task("advise", asdict(request), private=False)
        with _watch_progress(attempt, fork_server.pid, log):
            for record in fork_server.run(task, attempt.log_file, PATIENCE_S):
                if record["kind"] == "at":
                    attempt.at = record["at"]
                elif record["kind"] == "loader":
                    attempt.loader = MeasuredLoader(
                        **{name: value for name, value in record.items() if name != "kind"}
                    )
                    log(format_introduction(request.target, attempt.loader))
                elif record["kind"] == "advice":
                    calibration = Calibration.model_validate(record["calibration"])
                    attempt.loader = _with_memory(attempt, record)
                else:
                    raise_for(record, attempt)
    if attempt.loader is None or calibration is None:
        raise AdviceError(f"{request.target}: its process ended without a result.")
    return attempt.loader, calibration


def _start_fork_server(request: AdviceRequest) -> ForkServer:
    """Starts the process that measures the loader, in the user's environment."""
    return ForkServer(Path(request.folder), variables=environment.user_environment())


def _watch_progress(attempt: Attempt, pid: int, log: Log) -> TimedCalls:
    """Returns a context that observes the processes below `pid` at PROGRESS_S and before the end.

    It stores the lines at which they are in `attempt`, and logs them at PROGRESS_S.
    """

    def sample_stack(passed_s: float) -> None:
        attempt.stack = format_frames(find_frames(pid, attempt.log_file))
        if passed_s in PROGRESS_S:
            place = f", at\n{attempt.stack}" if attempt.stack else ""
            log(f"{passed_s:.0f} s have passed, while {attempt.at}{place}")

    reported = [moment for moment in PROGRESS_S if moment < PATIENCE_S]
    return TimedCalls([*reported, max(PATIENCE_S - 2.0, 0.0)], sample_stack)


def _with_memory(attempt: Attempt, record: Record) -> MeasuredLoader:
    """Returns the loader with what the record `advice` states of its memory and its data set."""
    if attempt.loader is None:
        raise AdviceError(f"{attempt.target}: its measurement arrived before its description.")
    memory = WorkerMemory.model_validate(record["memory"]) if record["memory"] else None
    return replace(attempt.loader, memory=memory, only_workers=record["only_workers"])
