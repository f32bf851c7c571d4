"""Modules as other projects write them, measured with very short windows: how they are imported and
called, and what is left alone."""

import ast
import json
import math
import os
import pickle
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from speech import usage
from speech.calibration import (
    batch_workers,
    calibrate,
    external_loader,
    loader_timings,
    step_timings,
    worker_memory,
)
from speech.calibration.loader_timings import add_timestamp
from speech.calibration.stages import StageFailed
from speech.calibration.worker_memory import WorkerMemory

ROOT = Path(__file__).parent.parent
JOURNAL = """
import json, os, sys, threading
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

def write(what, **more):
    with open("journal", "a") as file:
        file.write(json.dumps({"what": what, "pid": os.getpid(), "parent": os.getppid(), **more}) + "\\n")

write("import", argv=sys.argv, cwd=os.getcwd(), name=__name__, first=sys.path[0], temporary=os.environ.get("TMPDIR"),
      python=os.environ.get("PYTHONPATH"), main=getattr(sys.modules["__main__"], "__file__", None))

class Telling(Dataset):
    def __len__(self): return 64
    def __getitem__(self, index):
        worker = get_worker_info()
        write("read", worker=worker and worker.id)
        return torch.full((4,), float(index))
"""

EVERYTHING = """
import argparse, functools, multiprocessing, pickle, random, threading, zipfile
from concurrent.futures import ThreadPoolExecutor
import speech.words

parser = argparse.ArgumentParser()
parser.add_argument("--size", type=int, required=True)
options = parser.parse_args()

pool = ThreadPoolExecutor(1)  # lost by a fork: only who has started it can use it
pool.submit(write, "pool").result()
torch.exp(torch.randn(1500, 1500)).sum()  # starts the threads of OpenMP, which a forked process waits for in vain
archive = functools.lru_cache(zipfile.ZipFile)  # opened by whoever reads first: its offset is shared by who is forked then
words = open("words.txt", "rb")  # shared by all that are forked after it

class Words(Telling):
    def __getitem__(self, index):
        super().__getitem__(index)
        if get_worker_info() is None:
            pool.submit(write, "pool").result(timeout=20)
            torch.exp(torch.randn(1500, 1500)).sum()
        return torch.tensor(len(archive("words.zip").read(str(index))))

class Counting(Sampler):
    def __init__(self): self.epochs = 0
    def __len__(self): return 64
    def __iter__(self):
        self.epochs += 1
        write("epoch")
        return iter(random.sample(range(64), 64))

def make_loader():
    write("make", size=options.size, main=multiprocessing.current_process().name, count=speech.words.count)
    assert pickle.loads(b"c__main__\\nWords\\n.") is Words, "what its own run has pickled"
    return DataLoader(Words(), options.size, sampler=Counting(), num_workers=2, timeout=1, drop_last=True,
                      generator=torch.Generator().manual_seed(3))

if __name__ == "__main__":
    raise SystemExit("only when it is run")

def step(batch):
    write("step")
"""

IN_WORKERS = """
class Opened(Telling):
    file = None
    def __getitem__(self, index):
        super().__getitem__(index)
        return torch.tensor(int(self.file.read(index, get_worker_info().id)))

class File:
    def read(self, index, worker): return index

def open_it(worker):
    get_worker_info().dataset.file = File()

def make_loader(): return DataLoader(Opened(), 4, worker_init_fn=open_it)
def make_closed(): return DataLoader(Opened(), 4)
def make_none(): raise SystemExit(7)
def make_ended(): os._exit(9)

class Main(Telling):
    def __getitem__(self, index):
        if get_worker_info(): raise OSError("no worker can")
        return index

def make_main(): return DataLoader(Main(), 4)

class Ending(Telling):
    def __getitem__(self, index): os._exit(5)

def make_ending(): return DataLoader(Ending(), 4)
def make_samples(): return DataLoader(Telling(), batch_size=None)

class Named(Telling):
    def __getitem__(self, name):
        assert isinstance(name, str), name
        return torch.full((4,), float(name[1:]))

class Sorted:
    # it takes its time before it names the first sample
    def __len__(self): return 64
    def __iter__(self):
        import time
        time.sleep(1.3)
        return iter([f"k{index}" for index in range(64)])

def make_named(): return DataLoader(Named(), batch_size=None, sampler=Sorted())

class Shared(Telling):
    def __init__(self): self.values = torch.zeros(2 << 20).share_memory_()

def make_shared(): return DataLoader(Shared(), 4)
def make_spawned(): return DataLoader(Telling(), 4, multiprocessing_context="spawn", num_workers=1)
"""


SHORT = (
    (batch_workers, "WINDOW_S", 0.02), (calibrate, "ROUNDS", 1), (calibrate, "MAX_PROCESSES", 2), (loader_timings, "PASSES", 1),
    (step_timings, "STEP_S", 0.02), (worker_memory, "GROW_S", 0.1),
    (usage, "EXTERNAL_LIMIT", math.inf),  # the costs are not looked at, so others may use the cores
)  # fmt: skip


def advised(
    folder: Path, target: str, flags: tuple[str, ...] = (), step: str | None = None
) -> list[dict]:
    arguments = {
        "target": target,
        "folder": str(folder),
        "batch_size": None,
        "step": step,
        "step_s": None,
        "run_ahead": 0,
    }
    environment = {"TMPDIR": str(folder), "PYTHONPATH": None}
    told = folder / "records"

    def emit(record: dict) -> None:
        with told.open("a") as file:  # records come from several processes
            file.write(json.dumps(record) + "\n")

    try:
        external_loader.advise(
            arguments | {"arguments": list(flags), "environment": environment}, emit
        )
    except StageFailed:
        assert '"kind": "error"' in told.read_text().splitlines()[-1]
    return [json.loads(line) for line in told.read_text().splitlines()]


def advised_apart(calls: list[tuple], patch: str = "") -> list[list[dict]]:
    """Returns the result of `advised` for each of these arguments. It runs in a process that has
    imported torch and run nothing, as a template has: a fork of this process would lack the threads
    of OpenMP, which an earlier test may have started. `patch` is code that runs before.
    """
    code = f"""
import json, sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from tests.test_external_loader import SHORT, advised
for module, name, value in SHORT:
    setattr(module, name, value)
{patch}
print(json.dumps([advised(Path(call[0]), *call[1:]) for call in {[(str(folder), *rest) for folder, *rest in calls]!r}]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, timeout=300, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def journal(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "journal").read_text().splitlines()]


def test_nothing_is_done_to_a_module_that_training_would_not_do(tmp_path) -> None:
    (tmp_path / "script.py").write_text(JOURNAL + EVERYTHING)
    (tmp_path / "words.txt").write_text("words")
    (tmp_path / "speech").mkdir()
    (tmp_path / "speech/__init__.py").touch()
    (tmp_path / "speech/words.py").write_text("count = 5")
    with zipfile.ZipFile(tmp_path / "words.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for index in range(64):
            archive.writestr(str(index), "words " * 4000)
    (records,) = advised_apart([(tmp_path, "script:make_loader", ("--size", "4"), "script:step")])
    assert [record["kind"] for record in records if record["kind"] != "at"] == [
        "loader",
        "advice",
    ], records[-1]
    assert records[-1]["only_workers"] is None
    assert records[-1]["calibration"]["loader"]["batch_size"] == 4

    told = journal(tmp_path)
    imports = [line for line in told if line["what"] == "import"]
    script = str(tmp_path / "script.py")
    for line in imports:
        assert (line["argv"], line["cwd"], line["name"]) == (
            [script, "--size", "4"],
            str(tmp_path),
            "script",
        )
        assert (line["first"], line["main"]) == (str(tmp_path), script)
        assert (line["temporary"], line["python"]) == (str(tmp_path), None)
    makers = [line["pid"] for line in told if line["what"] == "make"]
    assert len(makers) == len(set(makers)) == len(imports) == 2
    assert makers == [line["pid"] for line in imports], (
        "make_loader is called once, where the module was imported"
    )
    assert {line["count"] for line in told if line["what"] == "make"} == {5}, (
        "their package speech, not ours"
    )
    assert {line["main"] for line in told if line["what"] == "make"} == {"MainProcess"}

    by_itself = [line for line in told if line["what"] == "read" and line["worker"] is None]
    assert {line["pid"] for line in by_itself} == {makers[1]}, (
        "what reads without workers is one process that made its loader"
    )
    first = told.index(by_itself[0])
    assert not any(
        line["what"] == "read" and line["worker"] is not None for line in told[first:]
    ), "and no worker is forked from it then"
    assert {
        line["parent"] for line in told if line["what"] == "read" and line["worker"] is not None
    } <= set(makers)
    assert {line["pid"] for line in told if line["what"] in ("step", "epoch")} <= set(makers)
    assert os.getpid() not in {line["pid"] for line in told}
    assert "script" not in sys.modules


NAMES = (
    "make_loader", "make_closed", "make_none", "make_ended", "make_main", "make_ending", "make_lost", "make_samples", "make_named",
    "make_shared",
)  # fmt: skip


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> dict[str, list[dict]]:
    """The records of all targets, from one process."""
    calls = []
    for name in NAMES:
        folder = tmp_path_factory.mktemp(name)
        (folder / "written.py").write_text(JOURNAL + IN_WORKERS)
        calls.append((folder, f"written:{name}"))
    return dict(zip(NAMES, advised_apart(calls), strict=True))


@pytest.fixture
def ends(recorded) -> dict[str, dict]:
    """The last record of each target."""
    return {name: records[-1] for name, records in recorded.items()}


def test_a_data_set_that_is_opened_in_its_workers_is_measured_without_0(ends) -> None:
    advice = ends["make_loader"]
    assert advice["kind"] == "advice"
    for part in ("'NoneType'", "'read'"):
        assert part in advice["only_workers"]
    if Path("/proc/self/smaps_rollup").exists():
        assert WorkerMemory.model_validate(advice["memory"]).own_bytes > 0


@pytest.mark.parametrize(
    ("name", "kind", "datum"),
    [("make_closed", "AttributeError", "'read'"), ("make_none", "SystemExit", "7"), ("make_ended", "Ended", "status 9"),
     ("make_main", "OSError", "no worker can"), ("make_ending", "Killed", "status 5"), ("make_lost", "ForeignError", "no make_lost.")],
)  # fmt: skip
def test_a_failure_is_reported_with_its_own_message(ends, name: str, kind: str, datum: str) -> None:
    error = ends[name]
    assert (error["kind"], error["type"]) == ("error", kind)
    assert datum in error["message"]
    assert ("hint" in error) is (name == "make_main"), "the process itself could read it"


def test_batches_of_single_samples_are_measured(ends) -> None:
    assert ends["make_samples"]["calibration"]["loader"]["batch_size"] == 1


def test_samples_by_name_and_a_slow_sampler_are_measured(ends, recorded) -> None:
    assert ends["make_named"]["kind"] == "advice", ends["make_named"]
    assert ends["make_named"]["calibration"]["loader"]["batch_size"] == 1
    assert (
        next(record for record in recorded["make_named"] if record["kind"] == "loader")["batches"]
        == 64
    )


def test_what_a_data_set_keeps_in_dev_shm_is_counted(recorded) -> None:
    held = {
        name: record["held_bytes"]
        for name in NAMES
        for record in recorded[name]
        if record["kind"] == "loader"
    }
    assert held["make_samples"] < 1 << 20
    assert 8 << 20 <= held["make_shared"] < 9 << 20


@pytest.mark.slow
def test_spawned_workers_have_a_whole_copy(tmp_path) -> None:
    (tmp_path / "spawned.py").write_text(JOURNAL + IN_WORKERS)
    *_, advice = advised_apart([(tmp_path, "spawned:make_spawned")])[0]
    assert advice["kind"] == "advice", advice
    memory = WorkerMemory.model_validate(advice["memory"])
    assert memory.own_bytes > 50 << 20, "torch's own memory alone is as much"
    assert not memory.copied


# A project whose packages have the names of ours. Workers that are not forked import everything by
# name
NAMESAKES = """
import speech.words, sweeps
from speech.data import make_dataset

def make_spawn(): return DataLoader(make_dataset(), 4, multiprocessing_context="spawn", num_workers=1)
def make_forkserver(): return DataLoader(make_dataset(), 4, multiprocessing_context="forkserver", num_workers=1)
"""
NAMESAKE_DATA = """
import torch

class Words(torch.utils.data.Dataset):
    def __len__(self): return 64
    def __getitem__(self, index): return torch.tensor(index)

def make_dataset(): return Words()
"""


def plant_namesakes(folder: Path) -> None:
    """Plants a project whose packages have the names of ours."""
    for name in ("speech", "sweeps"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").touch()
    (folder / "speech/words.py").touch()
    (folder / "speech/data.py").write_text(NAMESAKE_DATA)
    (folder / "named.py").write_text(JOURNAL + NAMESAKES)


def test_a_collate_with_a_timestamp_needs_no_module_of_ours_in_a_worker(tmp_path) -> None:
    plant_namesakes(tmp_path)
    sent = pickle.dumps(add_timestamp(sum))
    code = (
        "import pickle, speech.words, sys; print(pickle.loads(bytes.fromhex(sys.argv[1]))([2, 3]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, sent.hex()], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    batch, finished = ast.literal_eval(done.stdout)
    assert batch == 5
    assert 0 < finished < time.perf_counter()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_project_with_a_package_speech_is_measured_with_workers_that_import(
    tmp_path, method: str
) -> None:
    plant_namesakes(tmp_path)
    *_, advice = advised_apart([(tmp_path, f"named:make_{method}")])[0]
    assert advice["kind"] == "advice", advice
    assert len(advice["calibration"]["loader"]["deliver_s"]) > 1


def test_a_busy_machine_is_no_fault_of_a_data_set_that_the_process_reads_itself(tmp_path) -> None:
    (tmp_path / "script.py").write_text(
        "import torch\nfrom torch.utils.data import DataLoader, TensorDataset\n"
        "def make_loader(): return DataLoader(TensorDataset(torch.arange(16.0)), 2)\n"
    )
    patch = """
from speech.calibration.undisturbed_rounds import MachineBusy
def disturbed(*arguments): raise MachineBusy("planted")
external_loader = sys.modules["speech.calibration.external_loader"]
external_loader.measure_inline = disturbed
"""
    (records,) = advised_apart([(tmp_path, "script:make_loader")], patch)
    assert (records[-1]["kind"], records[-1]["type"]) == ("error", "MachineBusy")
    assert "advice" not in {record["kind"] for record in records}
