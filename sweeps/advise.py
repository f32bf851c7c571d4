"""python launch.py --advise module:make_loader: how many workers a loader of any PyTorch project should have on this machine.

The one idea is that nothing is swept. What one batch costs is measured with one worker at most, in a process tree of its own
(speech/foreign.py), which takes about a minute; every number of workers is then forecast from it (sweeps/advice.py).

    python launch.py --advise train:make_loader --step-s 0.025      the accelerator takes 25 ms a step
    python launch.py --advise train:make_loader --step train:step   step(batch) is timed
"""

import contextlib
import itertools
import re
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from speech.costs import Calibration
from sweeps import advice, hygiene
from sweeps.advice import Loader
from sweeps.cgroup import memory_limit
from sweeps.isolation import Record, Task, Template
from sweeps.preflight import PreflightError, Say
from sweeps.shm import EXHAUSTED, shm_usage

PATIENCE_S = 600.0  # a loader that takes longer is not measured to its end
TARGET = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
OWN_FRAMES = (str(Path(__file__).parent), str(Path(__file__).parent.parent / "speech"), "<frozen importlib")


class AdviceError(RuntimeError):
    """What was named can't be advised on; the text says why and how to mend it."""


@dataclass(frozen=True)
class Request:
    """What the command line asks. Modules are looked for in `folder` first."""

    target: str  # module:name
    folder: str
    batch_size: int | None = None  # of a Dataset
    step: str | None = None  # module:name
    step_s: float | None = None

    @property
    def with_step(self) -> bool:
        return self.step is not None or self.step_s is not None


def tell(request: Request, say: Say) -> None:
    """Measures, and says all there is to say. AdviceError: the loader is at fault; PreflightError: this machine."""
    loader, calibration = ask(request, say)
    say(f"\n{advice.measured(loader, calibration, request.with_step)}\n")
    say(advice.forecasts(loader, calibration, room_bytes()))


def room_bytes() -> int:
    """What may be filled of /dev/shm now: what is free there, and never more than memory."""
    usage = shm_usage()
    return min(usage.limit_bytes - usage.used_bytes, memory_limit())


def ask(request: Request, say: Say) -> tuple[Loader, Calibration]:
    """Has the loader found and measured in a process tree of its own, on the machine's own /dev/shm as it is now."""
    _check_names(request)
    unsettled = hygiene.settle().get("unsettled")
    if unsettled:
        say(f"This machine was busy before anything was measured: {unsettled}. What follows may be too slow.")
    loader = calibration = None
    with tempfile.TemporaryDirectory(prefix="advise-") as scratch, contextlib.closing(Template(Path(request.folder))) as template:
        log = Path(scratch) / "log"
        for record in template.run(Task("advise", asdict(request), private=False), log, PATIENCE_S):
            if record["kind"] == "loader":
                loader = Loader(**{name: value for name, value in record.items() if name != "kind"})
                say(advice.introduced(request.target, loader))
            elif record["kind"] == "advice":
                calibration = Calibration.model_validate(record["calibration"])
            else:
                _raise_for(record, request.target, loader, log)
    assert loader is not None  # a task that exits with status 0 has said what it found
    assert calibration is not None
    return loader, calibration


def _check_names(request: Request) -> None:
    for flag, target in (("--advise", request.target), ("--step", request.step)):
        if target is None or (TARGET.fullmatch(target) and ".py:" not in target):
            continue
        file, _, name = target.partition(":")
        module = file.removesuffix(".py").replace("/", ".").strip(".")
        raise AdviceError(f"{flag} {target}: write it as module:name, as in {module or 'train'}:{name or 'make_loader'}.")


def _raise_for(record: Record, target: str, loader: Loader | None, log: Path) -> None:
    if record["kind"] == "error":
        if record["type"] == "ForeignError":
            raise AdviceError(f"--advise {target}: {record['message']}")
        if loader and (record["type"] == "NoRoom" or EXHAUSTED.search(record["message"])):
            raise PreflightError(advice.no_room(loader, room_bytes()))
        raise AdviceError(f"--advise {target} failed:\n\n{theirs(record['traceback'])}")
    if record.get("timeout"):
        raise AdviceError(f"--advise {target}: given up after {PATIENCE_S / 60:.0f} minutes. Smaller batches are measured sooner.")
    if record["status"] != 0:
        said = log.read_text(errors="replace").strip().splitlines()[-5:]
        raise AdviceError("\n".join([f"--advise {target}: its process ended with status {record['status']}.", *said]))


def theirs(traceback: str) -> str:
    """A traceback without the frames of this project that it begins with."""
    head, *frames = re.split(r'(?m)^(?=  File ")', traceback)
    kept = list(itertools.dropwhile(lambda frame: frame.removeprefix('  File "').startswith(OWN_FRAMES), frames))
    return "".join([head, *(kept or frames[-1:])]).rstrip()
