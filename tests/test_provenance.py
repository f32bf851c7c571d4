"""Tests the warnings about changes of the environment since trials were settled."""

import json
import re
from types import SimpleNamespace

from sweeps.config.sweep_file import load
from sweeps.host.node import Node
from sweeps.tracking.provenance import available_devices, current_environment, differences, software

NOW = {
    "commit": ("c2",),
    "torch": ("2.14.1",),
    "CPU": ("EPYC",),
    "cores": ("2",),
    "GPU": ("H100", "H200"),
}
SAME = {
    "git_commit": "c2",
    "versions": json.dumps({"torch": "2.14.1"}),
    "cpu_name": "EPYC",
    "cores": "2",
}


def run(
    key: str, *, status: str = "FINISHED", outcome: str = "completed", **tags: str
) -> SimpleNamespace:
    return SimpleNamespace(
        info=SimpleNamespace(status=status),
        data=SimpleNamespace(tags={"trial_id": key, "outcome": outcome} | SAME | tags),
    )


def data_of(warnings: list[str]) -> list[list[str]]:
    """Returns the counts, names and values in each warning, in order."""
    assert all(line.startswith("warning: ") for line in warnings)
    known = {*NOW, "device", "cuda", "simulated"}
    return [
        [
            word
            for word in re.findall(r"[\w.]+", line)
            if word in known or re.search("[A-Z0-9]", word)
        ]
        for line in warnings
    ]


PLANNED = [SimpleNamespace(trial_id=key) for key in "abcd"]


def test_each_difference_is_a_warning_with_the_number_of_its_trials() -> None:
    runs = [
        run("a", git_commit="c1", cpu_name="Xeon", cores="4"),
        run("b", git_commit="c1", versions=json.dumps({"torch": "2.13.0"})),
        run("c", git_commit="c0", device="cuda", device_name="T4"),
        run("d", device="cuda", device_name="H200"),
    ]
    assert data_of(differences(runs, PLANNED, NOW, {})) == [
        ["2", "4", "commit", "c1", "c2"],
        ["1", "4", "commit", "c0", "c2"],
        ["1", "4", "torch", "2.13.0", "2.14.1"],
        ["1", "4", "CPU", "Xeon", "EPYC"],
        ["1", "4", "cores", "4", "2"],
        ["1", "4", "GPU", "T4", "H100", "H200"],
    ]


def test_only_the_latest_settled_attempts_of_planned_trials_are_compared() -> None:
    newest_first = [
        run("a", outcome="crashed", git_commit="c1"),
        run("a"),
        run("a", git_commit="c0"),
        run("b", outcome="oom", git_commit="c1"),
        run("gone", git_commit="c1"),
        run("c", status="RUNNING", git_commit="c1"),
    ]
    assert differences(newest_first, PLANNED, NOW, {}) == []


def test_a_trial_without_a_recorded_environment_has_no_differences() -> None:
    bare = SimpleNamespace(
        info=SimpleNamespace(status="FINISHED"),
        data=SimpleNamespace(tags={"trial_id": "a", "outcome": "completed"}),
    )
    assert differences([bare], PLANNED, NOW, {}) == []


def test_the_present_environment_follows_the_sweep_file_and_the_node(tmp_path) -> None:
    (tmp_path / "sweep.yaml").write_text(
        "name: x\nparameters: {corpus: {name: synthetic, words: [yes, no]}}\nresources: {cpus: 1}\n"
    )
    now = current_environment(load(tmp_path / "sweep.yaml"), [Node(("H100", "H100"), (0, 1))])
    assert (now["cores"], now["GPU"]) == (
        ("1",),
        ("H100",),
    ), "a trial is pinned to the cores it asks for"
    assert now["torch"] == (software()["versions"]["torch"],)


def planned(key: str, *prefer: str) -> SimpleNamespace:
    return SimpleNamespace(
        trial_id=key, config=SimpleNamespace(device=SimpleNamespace(prefer=prefer))
    )


def test_an_added_or_removed_gpu_changes_the_device_that_each_trial_gets() -> None:
    trials = [
        planned("a", "cuda", "simulated"),
        planned("b", "cuda", "simulated"),
        planned("c", "cpu"),
        planned("d", "cuda"),
    ]
    without, with_gpu = Node((), (0, 1), "EPYC"), Node(("T4",), (0, 1), "EPYC")
    simulated = [run(key, device="simulated") for key in "ab"] + [run("c", device="cpu")]
    on_gpu = [run(key, device="cuda", device_name="T4") for key in "abd"] + [run("c", device="cpu")]
    now = {"CPU": ("EPYC",)}
    assert differences(simulated, trials, now, available_devices(trials, [without])) == []
    added = differences(simulated, trials, now, available_devices(trials, [with_gpu]))
    assert data_of(added) == [["2", "3", "device", "simulated", "cuda"]]
    removed = differences(on_gpu, trials, now, available_devices(trials, [without]))
    assert data_of(removed) == [["2", "4", "device", "cuda", "simulated"]], (
        "a trial that needs a GPU gets no device here, so it is not compared"
    )
    assert differences(on_gpu, trials, now, available_devices(trials, [with_gpu, without])) == []
    assert differences(on_gpu, trials, now, {}) == [], "unknown devices"
