"""Advice on loaders of other projects: real loaders and batches, planted costs, and one real launch."""

import json
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import launch
from speech import calibrate, foreign
from speech.costs import Calibration, LoaderCosts, StepCosts
from speech.foreign import ForeignError, given, named, rebuilt, shared_bytes, step_costs
from sweeps import advice
from sweeps.advice import Loader, bottleneck, bounds, chosen, no_room, recommendation, rows, shm_need, table
from sweeps.advise import AdviceError, Request, ask, theirs

ROOT = Path(__file__).parent.parent
PAGE, MIB = 4096, 1 << 20
COSTS = LoaderCosts(
    cores=2, batch_size=32, batch_bytes=MIB, inline_s=0.1, prepare_s=0.1, receive_s=[(1, 0.001)], deliver_s=[(1, 0.0)],
    wake_s=[(1, 0.0)], release_s=0.001, fork_s=0.01, ready_s=0.01, shared=[(1, 1.0), (2, 1.0)], spread=0.01,
)  # fmt: skip
LOADER = Loader(
    dataset="Words", clips=1280, batches=40, batch_bytes=MIB, varies=False, sent_bytes=0, num_workers=4, prefetch_factor=2,
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
    return Calibration(loader=COSTS.model_copy(update=costs), step=StepCosts(wait_s=step_s), took_s=20)


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
def test_a_loader_a_pair_and_a_data_set_become_a_loader(folder, target, batch_size, size, batches, monkeypatch) -> None:
    monkeypatch.setattr(foreign, "FEWEST_BATCHES", 2)
    loader = given(target, folder, batch_size)
    assert loader.batch_size == size
    assert len(loader) == batches
    assert len(next(iter(loader))["label"]) == size


@pytest.mark.parametrize(
    ("target", "batch_size", "message"),
    [
        ("plantde:make_loader", None, "no module plantde.*Did you mean planted?"),
        ("nowhere.loaders:make", None, "no module nowhere, in .*Start in the folder"),
        ("speech.data:make", None, "this project has a package speech, which hides another"),
        ("planted:make_laoder", None, "planted.py has no make_laoder. Did you mean make_loader?"),
        ("planted:zzz", None, "It has Numbers, numbers, make_loader, make_pair"),
        ("planted:size", None, "planted:size is an int. Name a function"),
        ("planted:make_list", None, r"returns a list of 3 values. It is to return a torch DataLoader, a \(Dataset, batch size\) pair"),
        ("planted:make_nothing", None, "returns nothing. It is to return"),
        ("planted:make_few", None, "has 2 batches an epoch, and measuring takes 6"),
        ("planted:make_split", None, r"needs split, root, and is called with nothing.*return make_split\("),
        ("planted:make_loader", 8, "has a batch size of its own: leave out --batch-size"),
    ],
)
def test_what_can_not_be_advised_on_is_said_with_a_way_out(folder, target, batch_size, message) -> None:
    with pytest.raises(ForeignError, match=f"(?s){message}"):
        given(target, folder, batch_size)


def test_a_module_whose_own_import_fails_says_so_itself(folder) -> None:
    Path(folder, "needy.py").write_text("import no_such_package")
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        named("needy:make", folder)


def test_an_iterable_data_set_is_refused(folder) -> None:
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(range(100))

    sys.modules["planted"] = type(sys)("planted")
    sys.modules["planted"].make = lambda: DataLoader(Stream(), batch_size=4)  # type: ignore[attr-defined]
    with pytest.raises(ForeignError, match="IterableDataset, which shares out its samples"):
        given("planted:make", folder, None)


def doubled(samples):
    return 2 * torch.stack([sample[0] for sample in samples])


@pytest.mark.parametrize(
    "keys", [{"batch_size": 4, "drop_last": True}, {"batch_sampler": [[9, 1], [3, 0, 2]]}, {"batch_size": 4, "timeout": 9}]
)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_rebuilt_loader_gives_the_same_batches(keys, workers) -> None:
    loader = DataLoader(TensorDataset(torch.arange(10.0)), collate_fn=doubled, **({"num_workers": 1} if "timeout" in keys else {}), **keys)
    again = rebuilt(loader, workers, 3 if workers else None, bool(workers))
    assert (again.num_workers, again.prefetch_factor, again.persistent_workers) == ((2, 3, True) if workers else (0, None, False))
    for batch, expected in zip(again, loader, strict=True):
        assert torch.equal(batch, expected)


def test_a_batch_takes_the_storages_of_its_tensors_in_whole_pages_each_once() -> None:
    whole = torch.zeros(2048)  # two pages
    batch = {"input": [whole[:10], whole[20:]], "more": (torch.zeros(1), {"label": torch.zeros(1025)}), "names": ["a"]}
    assert shared_bytes(batch) == (2 + 1 + 2) * PAGE
    assert shared_bytes([3, "text"]) == 0


def test_what_no_worker_can_send_is_said() -> None:
    with pytest.raises(ForeignError, match="can't be sent from one process to another"):
        shared_bytes({"augment": lambda wave: wave})


def test_a_step_that_sleeps_is_the_accelerators_and_one_that_computes_the_hosts(monkeypatch) -> None:
    monkeypatch.setattr(foreign, "STEP_S", 0.2)
    monkeypatch.setattr(foreign, "calibrate_step", lambda once, threads, costs, plain: StepCosts(cpu_s=1.0, threads=threads))
    plain = DataLoader(TensorDataset(torch.arange(10.0)))
    waits = step_costs(lambda batch: time.sleep(0.02), [1], COSTS, plain)
    assert waits.wait_s == pytest.approx(0.02, rel=0.3)
    assert waits.cpu_s < 0.005

    def spin(batch: object) -> None:
        end = time.thread_time() + 0.02
        while time.thread_time() < end:
            pass

    assert step_costs(spin, [1], COSTS, plain).threads == 1


def test_what_workers_may_take_is_what_a_loader_of_them_was_measured_to_take() -> None:
    """4 workers that prefetch 2, batches of 1 MiB and a page of labels: 9.113 MiB, by statvfs under a slow loop."""
    need = shm_need(replace(LOADER, batch_bytes=MIB + PAGE), 4, 0)
    assert need.bound_bytes / MIB == pytest.approx(9.113, abs=0.001)
    assert shm_need(LOADER, 0, 0).bound_bytes == 0
    assert shm_need(replace(LOADER, batches=3), 4, 0).bound_bytes == 3 * MIB + 20 * PAGE, "no epoch has more batches than it has"
    assert shm_need(replace(LOADER, sent_bytes=MIB), 4, 0).floor_bytes == 2 * MIB + 20 * PAGE


def test_verdicts_follow_from_what_is_free_now() -> None:
    found = {row.workers: row.fit.verdict for row in rows(LOADER, calibration(0.025), 5 * MIB)}
    assert found == {0: "fits", 1: "fits", 2: "depends", 4: "depends", 8: "depends", 16: "depends"}
    assert {row.fit.verdict for row in rows(LOADER, calibration(0.025), MIB)} == {"fits", "overflows"}


def test_the_cores_and_the_loaders_own_number_are_in_the_table() -> None:
    found = rows(replace(LOADER, num_workers=5), calibration(0.025, cores=12, shared=[(1, 1.0), (12, 1.0)]), 1 << 40)
    assert [row.workers for row in found] == [0, 1, 2, 4, 5, 8, 12, 16]


def test_as_many_workers_as_cores_are_recommended_where_preparation_bounds() -> None:
    """Preparing takes 0.1 s a batch on one of 2 cores, a step 25 ms: 40 batches take 5 s at 0 workers, 4 at one, 2 from two on."""
    found = rows(LOADER, calibration(0.025), 1 << 40)
    by_workers = {row.workers: row.forecast.epoch_s for row in found}
    assert by_workers[0] == pytest.approx(5.0, rel=0.02)
    assert by_workers[1] == pytest.approx(4.1, rel=0.05)
    assert by_workers[4] == pytest.approx(2.1, rel=0.1)
    assert chosen(found).workers == 2
    text = recommendation(found, LOADER)
    assert text.startswith("Recommended: num_workers=2, 2.")
    assert "As it is, num_workers=4: 2." in text


def test_what_may_overflow_is_not_recommended() -> None:
    found = rows(LOADER, calibration(0.025), 4 * MIB)
    assert chosen(found).workers == 1
    assert "num_workers=4: " in (text := recommendation(found, LOADER))
    assert "and may overflow /dev/shm" in text
    assert "MiB free," in text
    assert chosen(rows(LOADER, calibration(0.025), MIB)).workers == 0


@pytest.mark.parametrize(
    ("step_s", "costs", "loader", "message"),
    [
        (0.025, {}, {}, r"preparation. By 2 workers on 2 cores it makes 640 samples/s, and the accelerator could take 1,280 samples/s: "
                        r"that needs 4 cores, or samples that cost 50% of their CPU"),
        (0.0, {}, {}, "preparation. By 2 workers on 2 cores it makes 640 samples/s. Whether that is enough"),
        (0.4, {}, {}, "the accelerator. It takes 80 samples/s, and 1 worker on 2 cores can make 320"),
        (0.01, {"read_s": 2.0}, {}, r"reads. 16 workers on 2 cores read 256 samples/s where preparation could make 640"),
        (0.0, {"fork_s": 3.0}, {"persistent": False, "num_workers": 0, "batches": 900}, "preparation"),
    ],
)  # fmt: skip
def test_the_next_bottleneck_is_what_would_take_longest_alone(step_s, costs, loader, message) -> None:
    of, made = replace(LOADER, **loader), calibration(step_s, **costs)
    assert re.match(f"Next bottleneck: {message}", bottleneck(of, made, chosen(rows(of, made, 1 << 40))))


def test_where_dev_shm_has_no_room_for_enough_workers_it_is_what_bounds() -> None:
    made = calibration(0.08)
    row = chosen(rows(LOADER, made, MIB))
    assert row.workers == 0
    text = bottleneck(LOADER, made, row)
    assert "the accelerator could take 400 samples/s: more workers would make that, had /dev/shm room for them." in text


def test_a_step_on_the_host_makes_the_cores_the_bound() -> None:
    made = Calibration(loader=COSTS, step=StepCosts(cpu_s=0.1, threads=2), took_s=1)
    row = next(row for row in rows(LOADER, made, 1 << 40) if row.workers == 2)
    assert bounds(LOADER, made, row)["cores"] == pytest.approx(40 * (0.1 + 0.001 + 0.2) / 2)
    assert "the cores. Preparation and a step that computes on the host share 2" in bottleneck(LOADER, made, row)


def test_starting_is_the_bound_of_a_short_epoch() -> None:
    made = calibration(0.0, fork_s=2.0, prepare_s=0.01)
    row = next(row for row in rows(replace(LOADER, persistent=False), made, 1 << 40) if row.workers == 1)
    assert "persistent_workers=True would start the workers once" in bottleneck(replace(LOADER, persistent=False), made, row)


def test_the_page_is_a_terminal_wide() -> None:
    found = rows(replace(LOADER, batch_bytes=900 * MIB, batches=40_000), calibration(0.025), 64 * MIB)
    assert max(map(len, table(found).splitlines())) <= advice.WIDTH
    for loader, with_step in ((LOADER, False), (replace(LOADER, persistent=False, first_read_bytes=987 * MIB, first_wait_s=12.3), True)):
        assert max(map(len, advice.measured(loader, calibration(0.0), with_step).splitlines())) <= advice.WIDTH


def test_a_dev_shm_without_room_for_one_worker_is_told_what_each_number_takes() -> None:
    text = no_room(LOADER, 2 * MIB)
    assert "A batch is 1.0 MiB and /dev/shm has 2.0 MiB free" in text
    assert "1 from 4M, 2 from 6M, 4 from 10M" in text


@pytest.mark.parametrize(
    ("target", "meant"), [("loaders.py:make", "loaders:make"), ("a/b.py", "a.b:make_loader"), ("make", "make:make_loader")]
)
def test_a_name_that_is_none_is_refused_before_anything_starts(target, meant) -> None:
    with pytest.raises(AdviceError, match=f"as in {meant}"):
        ask(Request(target, "."), print)


@pytest.mark.parametrize(
    "flags",
    [[], ["a.yaml", "--advise", "a:b"], ["a.yaml", "--step-s", "1"], ["--advise", "a:b", "--step-s", "-1"], ["--advise", "a:b", "--test"]],
)
def test_flags_that_do_not_go_together_are_refused(flags, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        launch.main(flags)
    assert ended.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_a_traceback_begins_with_the_frames_of_the_project_that_is_measured() -> None:
    ours, importing = f'  File "{ROOT}/speech/tasks.py", line 1, in advise\n    x\n', '  File "<frozen importlib._bootstrap>", line 1\n'
    yours = '  File "/home/you/loaders.py", line 3, in make\n    open(3)\n'
    text = f"Traceback (most recent call last):\n{ours}{importing}{yours}ValueError: 3\n"
    assert theirs(text) == f"Traceback (most recent call last):\n{yours}ValueError: 3"
    alone = f"Traceback (most recent call last):\n{text.splitlines(keepends=True)[1]}ValueError: 3"
    assert theirs(alone) == alone, "the error is told where all frames are ours"


def test_a_loader_is_measured_and_described(folder, monkeypatch) -> None:
    for name in ("WINDOW_S", "STEP_S"):
        monkeypatch.setattr(calibrate if name == "WINDOW_S" else foreign, name, 0.05)
    records: list[dict] = []
    foreign.advise({"target": "planted:make_loader", "folder": folder, "batch_size": None, "step": None, "step_s": 0.02}, records.append)
    found, told = json.loads(json.dumps(records))
    loader = Loader(**{name: value for name, value in found.items() if name != "kind"})
    assert (loader.dataset, loader.clips, loader.batches) == ("Numbers", 64, 16)
    assert (loader.num_workers, loader.prefetch_factor, loader.persistent) == (3, 5, True)
    assert loader.batch_bytes == 2 * PAGE
    made = Calibration.model_validate(told["calibration"])
    assert (made.loader.batch_size, made.loader.batch_bytes, made.step.wait_s) == (4, 2 * PAGE, 0.02)
    assert "Recommended: num_workers=" in advice.forecasts(loader, made, 1 << 30)


def launched(folder: str, *flags: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, ROOT / "launch.py", *flags], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )


def test_a_failing_loader_is_shown_by_its_own_traceback(folder) -> None:
    done = launched(folder, "--advise", "planted:make_broken")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "FileNotFoundError" in done.stderr
    assert 'planted.py", line' in done.stderr
    assert "speech/" not in done.stderr


@pytest.mark.slow
def test_advice_from_the_command_line(folder) -> None:
    done = launched(folder, "--advise", "planted:make_loader", "--step", "planted:step")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "planted:make_loader: Numbers of 64 samples in 16 batches of 0.0 MiB" in done.stdout
    assert "Recommended: num_workers=" in done.stdout
    assert "Next bottleneck: " in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= advice.WIDTH
