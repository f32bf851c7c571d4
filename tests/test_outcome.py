"""Tests how the end of a trial is classified: its outcome and the evidence for it."""

import re

import pytest

from sweeps.sandbox.outcome import TrainingEnd, classify

ENDED = {
    "status": 1,
    "shm_limit_bytes": 64 << 20,
    "shm_unrelated_bytes": 0,
    "shm_peak_bytes": 60 << 20,
    "batch_bytes": 9 << 20,
    "memory_limit_bytes": 8 << 30,
    "hang": None,
    "oom_kills": 0,
}


def error(kind: str, message: str) -> dict:
    return {
        "kind": "error",
        "type": kind,
        "message": message,
        "traceback": f"Traceback ...\n{kind}: {message}",
    }


@pytest.mark.parametrize(
    ("message", "outcome"),
    [
        (
            (
                "unable to allocate shared memory(shm) for file </torch_12_3_4>: No space left on"
                " device (28)"
            ),
            "shm_exhausted",
        ),
        (
            "unable to allocate shared memory(shm) for file </torch_12_3_4>: Success (0)",
            "shm_exhausted",
        ),
        (
            (
                "DataLoader worker (pid 9) is killed by signal: Bus error. It is possible that"
                " dataloader's workers are out of"
            ),
            "shm_exhausted",
        ),
        ("[Errno 28] No space left on device: '/home/me/snapshot-0.pt'", "crashed"),
        ("DataLoader worker (pid 9) is killed by signal: Killed.", "crashed"),
        (
            (
                "unable to open file </home/me/torch_models/r34.pt> in read-only mode: No such file"
                " or directory (2)"
            ),
            "crashed",
        ),
        (
            (
                "unable to open shared memory object </torch_9_1> in read-write mode: Permission"
                " denied (13)"
            ),
            "crashed",
        ),
    ],
)
def test_the_message_of_an_exception_decides_whether_shm_overflowed(
    message: str, outcome: str
) -> None:
    assert (
        classify(error("RuntimeError", message), ENDED, training_end=None, log="").outcome
        == outcome
    )


def test_the_evidence_of_an_overflow_gives_the_figures() -> None:
    said = "unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)"
    outcome = classify(error("RuntimeError", said), ENDED, training_end=None, log="")
    assert outcome.evidence.endswith(f": {said}")
    assert re.findall(r"([\d.]+) MiB", outcome.evidence) == ["64.0", "60.0", "9.0"]


def test_a_worker_that_only_wrote_to_stderr_counts() -> None:
    log = (
        "RuntimeError: unable to allocate shared memory(shm) for file </torch_1>: No space left on"
        " device (28)"
    )
    assert (
        classify(None, ENDED | {"status": -9}, training_end=None, log=log).outcome
        == "shm_exhausted"
    )


def test_a_hang_that_init_ended() -> None:
    ending = ENDED | {"status": -9, "hang": "no batch for 6 s"}
    found = classify(None, ending, training_end=None, log="")
    assert found.outcome == "shm_exhausted"
    assert found.evidence.endswith(ending["hang"])


def test_a_finished_trial_is_completed_whatever_it_wrote() -> None:
    log = "Bus error in an unrelated place"
    assert classify(None, ENDED | {"status": 0}, TrainingEnd(), log=log).outcome == "completed"


def test_a_clip_that_breaks_during_training() -> None:
    fault = "yes/a.wav: can't be opened (No such file)"
    outcome = classify(
        error("BadClip", f"Caught BadClip in worker 1.\n{fault}"), ENDED, training_end=None, log=""
    )
    assert outcome == ("data_error", fault)


@pytest.mark.parametrize(
    ("ending", "outcome", "fact"),
    [
        ({"status": None, "timeout": True}, "timeout", "trial_timeout"),
        ({"status": None}, "crashed", "from outside"),
        (ENDED | {"status": -11}, "crashed", "signal 11"),
        (ENDED | {"status": 3}, "crashed", "status 3"),
    ],
)
def test_an_end_without_a_message(ending: dict, outcome: str, fact: str) -> None:
    found = classify(None, ending, training_end=None, log="")
    assert found.outcome == outcome
    assert fact in found.evidence


def test_the_evidence_of_semaphores_that_do_not_fit_is_its_last_line() -> None:
    last = "OSError: [Errno 28] No space left on device"
    said = f"in __init__\n    SemLock.__init__(self, SEMAPHORE, value)\n  ...\n{last}"
    figures, found, rest = classify(error("OSError", said), ENDED, None, "").evidence.partition(
        f": {last}"
    )
    assert (found, rest) == (f": {last}", "")
    assert re.findall(r"([\d.]+) MiB", figures) == ["64.0", "60.0", "9.0"]
    assert "SemLock" not in figures


@pytest.mark.parametrize(
    ("kind", "message", "outcome"),
    [("BadClip", "a.wav: broken", "data_error"), ("ZeroDivisionError", "by 0", "crashed")],
)
def test_an_exception_with_a_cause_of_its_own_is_no_oom(
    kind: str, message: str, outcome: str
) -> None:
    assert (
        classify(error(kind, message), ENDED | {"oom_kills": 1}, training_end=None, log="").outcome
        == outcome
    )


def test_a_worker_that_the_oom_killer_took() -> None:
    said = error("RuntimeError", "DataLoader worker (pid 9) is killed by signal: Killed.")
    assert classify(said, ENDED | {"oom_kills": 1}, training_end=None, log="").outcome == "oom"


def test_the_oom_killer() -> None:
    assert (
        classify(None, ENDED | {"status": -9, "oom_kills": 1}, training_end=None, log="").outcome
        == "oom"
    )


def test_the_evidence_of_an_exception_is_its_type_and_last_line() -> None:
    outcome = classify(
        error("ValueError", "first line\nlast line"), ENDED, training_end=None, log=""
    )
    assert outcome == ("crashed", "ValueError: last line")


def test_a_training_that_diverged_is_an_outcome_unless_it_left_snapshots() -> None:
    assert classify(None, ENDED | {"status": 0}, TrainingEnd("loss nan", learned=False), "") == (
        "diverged",
        "loss nan",
    )
    partly = classify(None, ENDED | {"status": 0}, TrainingEnd("loss nan"), "")
    assert partly.outcome == "completed"
    assert "loss nan" in partly.evidence
