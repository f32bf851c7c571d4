"""What settled trials ran on and with, held against what a launch has now."""

import json
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


PLANNED = [SimpleNamespace(trial_id=key) for key in "abcd"]


def test_each_difference_is_a_line_with_how_many_have_it() -> None:
    runs = [
        run("a", git_commit="c1", cpu_name="Xeon", cores="4"),
        run("b", git_commit="c1", versions=json.dumps({"torch": "2.13.0"})),
        run("c", git_commit="c0", device="cuda", device_name="T4"),
        run("d", device="cuda", device_name="H200"),
    ]
    assert differences(runs, PLANNED, NOW, {}) == [
        "warning: 2 of 4 settled trials ran with commit c1; it is now c2",
        "warning: 1 of 4 settled trials ran with commit c0; it is now c2",
        "warning: 1 of 4 settled trials ran with torch 2.13.0; it is now 2.14.1",
        "warning: 1 of 4 settled trials ran with CPU Xeon; it is now EPYC",
        "warning: 1 of 4 settled trials ran with cores 4; it is now 2",
        "warning: 1 of 4 settled trials ran with GPU T4; it is now H100 or H200",
    ]


def test_only_the_attempt_that_counts_of_a_settled_trial_of_the_plan_is_looked_at() -> None:
    newest_first = [
        run("a", outcome="crashed", git_commit="c1"),
        run("a"),
        run("a", git_commit="c0"),
        run("b", outcome="oom", git_commit="c1"),
        run("gone", git_commit="c1"),
        run("c", status="RUNNING", git_commit="c1"),
    ]
    assert differences(newest_first, PLANNED, NOW, {}) == []


def test_a_trial_that_could_not_say_where_it_ran_differs_in_nothing_of_that() -> None:
    bare = SimpleNamespace(
        info=SimpleNamespace(status="FINISHED"),
        data=SimpleNamespace(tags={"trial_id": "a", "outcome": "completed"}),
    )
    assert differences([bare], PLANNED, NOW, {}) == []


def test_what_there_is_now_follows_the_file_and_the_node(tmp_path) -> None:
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


def test_a_gpu_that_came_or_went_is_told_by_the_device_that_each_trial_gets() -> None:
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
    assert differences(simulated, trials, now, available_devices(trials, [with_gpu])) == [
        "warning: 2 of 3 settled trials ran with device simulated; it is now cuda"
    ]
    assert differences(on_gpu, trials, now, available_devices(trials, [without])) == [
        "warning: 2 of 4 settled trials ran with device cuda; it is now simulated"
    ], "one that needs a GPU gets none here: there is nothing to hold against"
    assert differences(on_gpu, trials, now, available_devices(trials, [with_gpu, without])) == []
    assert differences(on_gpu, trials, now, {}) == [], "not known"
