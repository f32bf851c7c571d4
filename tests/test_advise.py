"""Advice on loaders of other projects: real loaders and batches, planted costs, and one real
launch."""

import fcntl
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from speech.calibration import loader_source, step_timings
from speech.calibration.costs import Calibration, LoaderCosts, StepCosts
from speech.calibration.loader_source import (
    ForeignError,
    load_callable,
    load_loader,
    rebuild_loader,
    shared_bytes,
)
from speech.calibration.step_timings import measure_step
from speech.calibration.worker_memory import WorkerMemory
from sweeps.commands.advise import advise
from sweeps.commands.advise.advise import AdviceRequest, measure_loader, print_advice
from sweeps.commands.advise.costs_text import format_costs
from sweeps.commands.advise.failures import AdviceError, shm_shortage_message, strip_own_frames
from sweeps.commands.advise.figures import WIDTH
from sweeps.commands.advise.forecast_text import (
    bottleneck_text,
    format_forecasts,
    format_table,
    recommendation_text,
)
from sweeps.commands.advise.loader_forecast import (
    MeasuredLoader,
    forecast_rows,
    loader_shm_requirement,
    recommended_row,
    time_bounds,
)
from sweeps.host import host_lock, hygiene
from tests.test_external_loader import advised_apart
from tests.trees import wait_until

ROOT = Path(__file__).parent.parent
PAGE, MIB = 4096, 1 << 20
COSTS = LoaderCosts(
    cores=2, batch_size=32, batch_bytes=MIB, inline_s=0.1, prepare_s=0.1, receive_s=[(1, 0.001)], deliver_s=[(1, 0.0)],
    wake_s=[(1, 0.0)], release_s=0.001, fork_s=0.01, ready_s=0.01, shared=[(1, 1.0), (2, 1.0)], spread=0.01,
)  # fmt: skip
LOADER = MeasuredLoader(
    dataset="Words", clips=1280, batches=40, batch_bytes=MIB, varies=False, held_bytes=0, sent_bytes=0, num_workers=4, prefetch_factor=2,
    persistent=True, first_wait_s=0.0, first_read_bytes=0,
)  # fmt: skip

MODULE = """
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

class Numbers(Dataset):
    def __len__(self): return 64
    def __getitem__(self, index): return {"input": torch.full((8, 8), float(index)), "label": index}

size = 3
numbers = Numbers

def make_loader(): return DataLoader(Numbers(), batch_size=4, num_workers=3, prefetch_factor=5, persistent_workers=True)
def make_pair(): return Numbers(), 8
def make_list(): return [1, 2, 3]
def make_nothing(): pass
def make_few(): return Numbers(), 32
def make_split(split, root): return Numbers()
def make_broken(): return open("/no/such/file")
def step(batch): return batch["input"].sum()
"""


def calibration(step_s: float, **costs) -> Calibration:
    return Calibration(
        loader=COSTS.model_copy(update=costs), step=StepCosts(wait_s=step_s), took_s=20
    )


@pytest.fixture
def folder(tmp_path, monkeypatch) -> str:
    """A folder with the module `planted`, imported anew by each test."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "planted", raising=False)
    (tmp_path / "planted.py").write_text(MODULE)
    yield str(tmp_path)
    sys.modules.pop("planted", None)


@pytest.mark.parametrize(
    ("target", "batch_size", "size", "batches"),
    [
        ("planted:make_loader", None, 4, 16),
        ("planted:make_pair", None, 8, 8),
        ("planted:numbers", None, 32, 2),
        ("planted:Numbers", 4, 4, 16),
    ],
)
def test_a_loader_a_pair_and_a_data_set_become_a_loader(
    folder, target, batch_size, size, batches, monkeypatch
) -> None:
    monkeypatch.setattr(loader_source, "MIN_EPOCH_BATCHES", 2)
    loader = load_loader(target, folder, batch_size)
    assert loader.batch_size == size
    assert len(loader) == batches
    assert len(next(iter(loader))["label"]) == size


@pytest.mark.parametrize(
    ("target", "batch_size", "message"),
    [
        ("plantde:make_loader", None, "no module plantde.*Did you mean planted?"),
        ("nowhere.loaders:make", None, "no module nowhere, in .* folder"),
        ("speech.data:make", None, "no module speech.data, in .* folder"),
        ("planted:make_laoder", None, "planted.py has no make_laoder. Did you mean make_loader?"),
        ("planted:zzz", None, "It has Numbers, numbers, make_loader, make_pair"),
        ("planted:size", None, "planted:size is an int. Name a function"),
        (
            "planted:make_list",
            None,
            r"a list of 3 values\..*DataLoader, a \(Dataset, batch size\) pair",
        ),
        ("planted:make_nothing", None, "returns nothing"),
        ("planted:make_few", None, "has 2 batches an epoch.* 6"),
        (
            "planted:make_split",
            None,
            r"needs split, root,.*return make_split\(",
        ),
        ("planted:make_loader", 8, "its own batch size.*--batch-size"),
    ],
)
def test_what_can_not_be_advised_on_is_said_with_a_way_out(
    folder, target, batch_size, message
) -> None:
    with pytest.raises(ForeignError, match=f"(?s){message}"):
        load_loader(target, folder, batch_size)


def test_a_module_whose_own_import_fails_says_so_itself(folder) -> None:
    Path(folder, "needy.py").write_text("import no_such_package")
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        load_callable("needy:make", folder)


def test_an_iterable_data_set_is_refused(folder) -> None:
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(range(100))

    sys.modules["planted"] = type(sys)("planted")
    sys.modules["planted"].make = lambda: DataLoader(Stream(), batch_size=4)  # type: ignore[attr-defined]
    with pytest.raises(ForeignError, match="IterableDataset"):
        load_loader("planted:make", folder, None)


def doubled(samples):
    return 2 * torch.stack([sample[0] for sample in samples])


@pytest.mark.parametrize(
    "keys",
    [
        {"batch_size": 4, "drop_last": True},
        {"batch_sampler": [[9, 1], [3, 0, 2]]},
        {"batch_size": 4, "timeout": 9},
    ],
)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_rebuilt_loader_gives_the_same_batches(keys, workers) -> None:
    loader = DataLoader(
        TensorDataset(torch.arange(10.0)),
        collate_fn=doubled,
        **({"num_workers": 1} if "timeout" in keys else {}),
        **keys,
    )
    again = rebuild_loader(loader, workers, 3 if workers else None, bool(workers))
    assert (again.num_workers, again.prefetch_factor, again.persistent_workers) == (
        (2, 3, True) if workers else (0, None, False)
    )
    for batch, expected in zip(again, loader, strict=True):
        assert torch.equal(batch, expected)


def test_a_batch_takes_the_storages_of_its_tensors_in_whole_pages_each_once() -> None:
    whole = torch.zeros(2048)  # two pages
    batch = {
        "input": [whole[:10], whole[20:]],
        "more": (torch.zeros(1), {"label": torch.zeros(1025)}),
        "names": ["a"],
    }
    assert shared_bytes(batch) == (2 + 1 + 2) * PAGE
    assert shared_bytes([3, "text"]) == 0


def test_what_no_worker_can_send_is_said() -> None:
    with pytest.raises(ForeignError, match=r"a dict of 1 values.*worker"):
        shared_bytes({"augment": lambda wave: wave})


def test_a_step_that_sleeps_is_the_accelerators_and_one_that_computes_the_hosts(
    monkeypatch,
) -> None:
    monkeypatch.setattr(step_timings, "STEP_S", 0.2)
    monkeypatch.setattr(
        step_timings,
        "calibrate_step",
        lambda once, threads, costs, plain: StepCosts(cpu_s=1.0, threads=threads),
    )
    plain = DataLoader(TensorDataset(torch.arange(10.0)))
    waits = measure_step(lambda batch: time.sleep(0.02), [1], COSTS, plain)
    assert waits.wait_s == pytest.approx(0.02, rel=0.3)
    assert waits.cpu_s < 0.005

    def spin(batch: object) -> None:
        end = time.thread_time() + 0.02
        while time.thread_time() < end:
            pass

    assert measure_step(spin, [1], COSTS, plain).threads == 1


def test_what_workers_may_take_is_what_a_loader_of_them_was_measured_to_take() -> None:
    """4 workers that prefetch 2, batches of 1 MiB and a page of labels: 9.113 MiB, by statvfs under
    a slow loop."""
    need = loader_shm_requirement(replace(LOADER, batch_bytes=MIB + PAGE), 4, 0)
    assert need.max_bytes / MIB == pytest.approx(9.113, abs=0.001)
    assert loader_shm_requirement(LOADER, 0, 0).max_bytes == 0
    assert (
        loader_shm_requirement(replace(LOADER, batches=3), 4, 0).max_bytes == 3 * MIB + 20 * PAGE
    ), "no epoch has more batches than it has"
    assert (
        loader_shm_requirement(replace(LOADER, sent_bytes=MIB), 4, 0).min_bytes
        == 2 * MIB + 20 * PAGE
    )


def test_verdicts_follow_from_what_is_free_now() -> None:
    found = {
        row.workers: row.shm.verdict for row in forecast_rows(LOADER, calibration(0.025), 5 * MIB)
    }
    assert found == {0: "fits", 1: "fits", 2: "depends", 4: "depends", 8: "depends", 16: "depends"}
    assert {row.shm.verdict for row in forecast_rows(LOADER, calibration(0.025), MIB)} == {
        "fits",
        "overflows",
    }


def test_the_cores_and_the_loaders_own_number_are_in_the_table() -> None:
    found = forecast_rows(
        replace(LOADER, num_workers=5),
        calibration(0.025, cores=12, shared=[(1, 1.0), (12, 1.0)]),
        1 << 40,
    )
    assert [row.workers for row in found] == [0, 1, 2, 4, 5, 8, 12, 16]


def test_as_many_workers_as_cores_are_recommended_where_preparation_bounds() -> None:
    """Preparing takes 0.1 s a batch on one of 2 cores, a step 25 ms: 40 batches take 5 s at 0
    workers, 4 at one, 2 from two on."""
    found = forecast_rows(LOADER, calibration(0.025), 1 << 40)
    by_workers = {row.workers: row.forecast.epoch_s for row in found}
    assert by_workers[0] == pytest.approx(5.0, rel=0.02)
    assert by_workers[1] == pytest.approx(4.1, rel=0.05)
    assert by_workers[4] == pytest.approx(2.1, rel=0.1)
    assert recommended_row(found).workers == 2
    text = recommendation_text(found, LOADER)
    assert text.startswith("Recommended: num_workers=2, 2.")
    assert "num_workers=4: 2." in text


def test_what_may_overflow_is_not_recommended() -> None:
    found = forecast_rows(LOADER, calibration(0.025), 4 * MIB)
    assert recommended_row(found).workers == 1
    assert "num_workers=4: " in (text := recommendation_text(found, LOADER))
    assert "and may overflow /dev/shm" in text
    assert "MiB of /dev/shm free," in text
    assert recommended_row(forecast_rows(LOADER, calibration(0.025), MIB)).workers == 0


@pytest.mark.parametrize(
    ("step_s", "costs", "loader", "message"),
    [
        (0.025, {}, {}, "preparation, at 640 samples/s by 2 workers on 2 cores.* 1,280 samples/s.* 4 cores.* 50%"),
        (0.0, {}, {}, "preparation, at 640 samples/s by 2 workers on 2 cores.*--step"),
        (0.4, {}, {}, "the accelerator.* 80 samples/s.* 1 worker on 2 cores .* 320"),
        (0.01, {"read_s": 2.0}, {}, "reads, at 256 samples/s by 16 workers on 2 cores.* 640"),
        (0.0, {"fork_s": 3.0}, {"persistent": False, "num_workers": 0, "batches": 900}, "preparation"),
    ],
)  # fmt: skip
def test_the_next_bottleneck_is_what_would_take_longest_alone(
    step_s, costs, loader, message
) -> None:
    of, made = replace(LOADER, **loader), calibration(step_s, **costs)
    assert re.match(
        f"Next bottleneck: {message}",
        bottleneck_text(of, made, recommended_row(forecast_rows(of, made, 1 << 40))),
    )


def test_where_dev_shm_has_no_room_for_enough_workers_it_is_what_bounds() -> None:
    made = calibration(0.08)
    found = forecast_rows(LOADER, made, MIB)
    assert recommended_row(found).workers == 0
    text = bottleneck_text(LOADER, made, recommended_row(found), found)
    assert "400 samples/s" in text
    assert "if /dev/shm had room" in text


def test_where_memory_has_no_room_for_enough_workers_dev_shm_is_not_blamed() -> None:
    made, loader = (
        calibration(0.08),
        replace(
            LOADER,
            memory=WorkerMemory(own_bytes=8 * MIB, samples=1280, read_samples=100, main_bytes=MIB),
        ),
    )
    found = forecast_rows(loader, made, 1 << 40, 6 * MIB)
    assert recommended_row(found).workers == 0
    text = bottleneck_text(loader, made, recommended_row(found), found)
    assert "if memory had room" in text
    assert "/dev/shm" not in text


def test_a_step_on_the_host_makes_the_cores_the_bound() -> None:
    made = Calibration(loader=COSTS, step=StepCosts(cpu_s=0.1, threads=2), took_s=1)
    row = next(row for row in forecast_rows(LOADER, made, 1 << 40) if row.workers == 2)
    assert time_bounds(LOADER, made, row)["cores"] == pytest.approx(40 * (0.1 + 0.001 + 0.2) / 2)
    assert "Next bottleneck: the cores" in bottleneck_text(LOADER, made, row)


def test_starting_is_the_bound_of_a_short_epoch() -> None:
    made = calibration(0.0, fork_s=2.0, prepare_s=0.01)
    row = next(
        row
        for row in forecast_rows(replace(LOADER, persistent=False), made, 1 << 40)
        if row.workers == 1
    )
    assert "persistent_workers=True" in bottleneck_text(
        replace(LOADER, persistent=False), made, row
    )


def test_the_page_is_a_terminal_wide() -> None:
    large = MEMORY.model_copy(update={"main_bytes": 300 << 30, "growth_bytes": 1e6})
    huge = replace(LOADER, batch_bytes=900 * MIB, batches=40_000, memory=large)
    for free in (64 * MIB, 2 << 30):
        found = forecast_rows(huge, calibration(0.025), free, 64 << 30)
        assert max(map(len, format_table(found).splitlines())) <= WIDTH
        assert (
            max(
                map(
                    len,
                    format_forecasts(huge, calibration(0.025), free, 64 << 30).splitlines(),
                )
            )
            <= WIDTH
        )
    short = replace(LOADER, persistent=False, first_read_bytes=987 * MIB, first_wait_s=12.3)
    for loader, with_step in ((LOADER, False), (huge, True), (short, True)):
        assert (
            max(map(len, format_costs(loader, calibration(0.0), with_step).splitlines())) <= WIDTH
        )


def test_a_dev_shm_without_room_for_one_worker_is_told_what_each_number_takes() -> None:
    text = shm_shortage_message(LOADER, 2 * MIB)
    assert "2.0 MiB free" in text
    assert "1 from 4M, 2 from 6M, 4 from 10M" in text


@pytest.mark.parametrize(
    ("target", "meant"),
    [
        ("loaders.py:make", "loaders:make"),
        ("a/b.py", "a.b:make_loader"),
        ("make", "make:make_loader"),
    ],
)
def test_a_name_that_is_none_is_refused_before_anything_starts(target, meant) -> None:
    with pytest.raises(AdviceError, match=f"as in {meant}"):
        measure_loader(AdviceRequest(target, "."), print)


def test_a_traceback_begins_with_the_frames_of_the_project_that_is_measured() -> None:
    ours, importing = (
        f'  File "{ROOT}/speech/tasks.py", line 1, in advise\n    x\n',
        '  File "<frozen importlib._bootstrap>", line 1\n',
    )
    yours = '  File "/home/you/loaders.py", line 3, in make\n    open(3)\n'
    text = f"Traceback (most recent call last):\n{ours}{importing}{yours}ValueError: 3\n"
    assert strip_own_frames(text) == f"Traceback (most recent call last):\n{yours}ValueError: 3"
    alone = f"Traceback (most recent call last):\n{text.splitlines(keepends=True)[1]}ValueError: 3"
    assert strip_own_frames(alone) == alone, "the error is told where all frames are ours"


def test_a_loader_is_measured_and_described(folder) -> None:
    found, told = (
        record
        for record in advised_apart([(Path(folder), "planted:make_loader")])[0]
        if record["kind"] != "at"
    )
    loader = MeasuredLoader(**{name: value for name, value in found.items() if name != "kind"})
    assert (loader.dataset, loader.clips, loader.batches) == ("Numbers", 64, 16)
    assert (loader.num_workers, loader.prefetch_factor, loader.persistent) == (3, 5, True)
    assert loader.batch_bytes == 2 * PAGE
    made = Calibration.model_validate(told["calibration"])
    assert (made.loader.batch_size, made.loader.batch_bytes) == (4, 2 * PAGE)
    assert "Recommended: num_workers=" in format_forecasts(loader, made, 1 << 30)


MEMORY = WorkerMemory(
    own_bytes=10 * MIB,
    copied=[(640, 50 * MIB)],
    most_copied_bytes=100 * MIB,
    samples=1280,
    read_samples=640,
    main_bytes=500 * MIB,
)


def test_workers_that_do_not_fit_into_memory_are_never_recommended() -> None:
    loader = replace(LOADER, memory=MEMORY)
    found = forecast_rows(loader, calibration(0.025), 1 << 40, 640 * MIB)
    assert [row.workers for row in found if row.fits] == [0, 1]
    assert recommended_row(found).workers == 1
    text = recommendation_text(found, loader)
    assert "num_workers=4: " in text
    assert "exceeds the memory" in text
    assert "MiB of memory available" in text
    assert recommended_row(forecast_rows(loader, calibration(0.025), 1 << 40, 100 * MIB)) is None
    assert "Nothing is recommended" in format_forecasts(
        loader, calibration(0.025), 1 << 40, 100 * MIB
    )
    assert recommended_row(forecast_rows(loader, calibration(0.025), 1 << 40, 1 << 40)).workers == 2


def test_memory_that_was_not_measured_is_said_and_not_shown() -> None:
    text = format_forecasts(LOADER, calibration(0.025), 1 << 30, 1 << 34)
    assert "Memory is not shown" in text
    assert "all MiB" not in text
    assert "all MiB" in format_forecasts(
        replace(LOADER, memory=MEMORY), calibration(0.025), 1 << 30, 1 << 34
    )


def test_a_data_set_that_works_only_in_workers_has_no_row_without() -> None:
    loader = replace(LOADER, only_workers="TypeError: not open", num_workers=0)
    found = forecast_rows(loader, calibration(0.025), 1 << 40)
    assert [row.workers for row in found] == [1, 2, 4, 8, 16]
    text = format_forecasts(loader, calibration(0.025), 1 << 40)
    assert "TypeError: not open" in text
    assert "without" not in format_costs(loader, calibration(0.025), False).splitlines()[1]


HANGING = """
import time
def make_loader():
    print("about to wait")
    time.sleep(600)
"""


@pytest.mark.slow
def test_a_loader_that_hangs_is_given_up_with_the_line_it_is_at(tmp_path, monkeypatch) -> None:
    (tmp_path / "hangs.py").write_text(HANGING)
    monkeypatch.setattr(advise, "PATIENCE_S", 25.0)
    monkeypatch.setattr(hygiene, "wait_until_idle", dict)
    with pytest.raises(AdviceError) as given_up:
        measure_loader(AdviceRequest("hangs:make_loader", str(tmp_path)), print)
    text = str(given_up.value)
    assert "calling hangs:make_loader" in text
    assert f'File "{tmp_path}/hangs.py", line 5, in make_loader' in text
    assert str(ROOT / "speech") not in text


@pytest.mark.slow
def test_arguments_that_a_module_needs_are_asked_for(tmp_path, monkeypatch) -> None:
    code = (
        "import argparse\nparser = argparse.ArgumentParser()\nparser.add_argument('--data',"
        " required=True)\nparser.parse_args()\n"
    )
    (tmp_path / "needy.py").write_text(code)
    monkeypatch.setattr(hygiene, "wait_until_idle", dict)
    with pytest.raises(AdviceError) as needs:
        measure_loader(AdviceRequest("needy:make_loader", str(tmp_path)), print)
    assert "after --" in str(needs.value)
    assert "needy.py: error: the following arguments are required: --data" in str(needs.value)
    with pytest.raises(AdviceError, match="has no make_loader"):
        measure_loader(
            AdviceRequest("needy:make_loader", str(tmp_path), arguments=["--data", "x"]), print
        )


HOLD = """
import sys
from pathlib import Path
from sweeps.host import host_lock
host_lock.LOCK, host_lock.GATE = map(Path, sys.argv[1:])
with host_lock.acquire(True, "sweep planted (process 4711)", print):
    print("has it", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def trial(tmp_path, monkeypatch):
    """A process that holds this machine, as a trial that runs alone does, until its stdin closes."""
    monkeypatch.setattr(host_lock, "LOCK", tmp_path / "lock")
    monkeypatch.setattr(host_lock, "GATE", tmp_path / "gate")
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, host_lock.LOCK, host_lock.GATE],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "has it\n"
        yield process
        process.kill()


def test_measuring_waits_for_the_trial_that_holds_the_machine_and_then_holds_it(
    trial, tmp_path, monkeypatch
) -> None:
    began: list[str] = []
    lines: list[str] = []

    def measure(request: AdviceRequest, log: object) -> tuple[MeasuredLoader, Calibration]:
        with host_lock._open_lock_file(host_lock.LOCK) as lock:
            assert not host_lock._try_lock(lock, fcntl.LOCK_SH), "a trial could start beside it"
        began.append(request.target)
        return LOADER, calibration(0.025)

    monkeypatch.setattr(advise, "measure_loader", measure)
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(print_advice, AdviceRequest("planted:make", str(tmp_path)), lines.append)
        assert wait_until(lambda: len(lines) == 1)
        assert "sweep planted (process 4711)" in lines[0]
        time.sleep(0.3)
        assert not began
        trial.stdin.close()
        done.result(30)
    assert began == ["planted:make"]
    assert "Recommended: num_workers=" in lines[-1]
    with host_lock._open_lock_file(host_lock.LOCK) as lock:
        assert host_lock._try_lock(lock, fcntl.LOCK_EX), "the advice is given, so trials may run"


@pytest.mark.slow
def test_advice_is_measured_and_given_after_the_trial_that_holds_the_machine(
    trial, folder, monkeypatch
) -> None:
    monkeypatch.setattr(hygiene, "wait_until_idle", dict)
    lines: list[str] = []
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(print_advice, AdviceRequest("planted:make_loader", folder), lines.append)
        assert wait_until(lambda: len(lines) == 1)
        trial.stdin.close()
        done.result(120)
    assert "sweep planted (process 4711)" in lines[0]
    assert any(line.startswith("planted:make_loader: Numbers of 64 samples") for line in lines[1:])
    assert "Recommended: num_workers=" in lines[-1]


def launched(folder: str, *flags: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, ROOT / "launch.py", *flags],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,  # it waits while a launch holds this machine
        check=False,
    )


def test_a_failing_loader_is_shown_by_its_own_traceback(folder) -> None:
    done = launched(folder, "advise", "planted:make_broken")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "FileNotFoundError" in done.stderr
    assert 'planted.py", line' in done.stderr
    assert "speech/" not in done.stderr


@pytest.mark.slow
def test_advice_from_the_command_line(folder) -> None:
    done = launched(folder, "advise", "planted:make_loader", "--step", "planted:step")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "planted:make_loader: Numbers of 64 samples in 16 batches of 0.0 MiB" in done.stdout
    assert "Recommended: num_workers=" in done.stdout
    assert "Next bottleneck: " in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= WIDTH
