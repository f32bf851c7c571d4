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
def test_an_exception_is_read_for_what_it_says_of_shm(message: str, outcome: str) -> None:
    assert (
        classify(error("RuntimeError", message), ENDED, training_end=None, log="").outcome
        == outcome
    )


def test_the_evidence_of_an_overflow_gives_the_figures() -> None:
    said = "unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)"
    outcome = classify(error("RuntimeError", said), ENDED, training_end=None, log="")
    assert (
        outcome.evidence == f"/dev/shm of 64.0 MiB, 60.0 MiB used at most, 9.0 MiB a batch: {said}"
    )


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
    assert (
        classify(
            None, ENDED | {"status": -9, "hang": "no batch for 6 s"}, training_end=None, log=""
        ).outcome
        == "shm_exhausted"
    )


def test_a_finished_trial_is_completed_whatever_it_wrote() -> None:
    assert (
        classify(
            None, ENDED | {"status": 0}, TrainingEnd(), log="Bus error in an unrelated place"
        ).outcome
        == "completed"
    )


def test_a_clip_that_broke_under_way() -> None:
    outcome = classify(
        error("BadClip", "Caught BadClip in worker 1.\nyes/a.wav: can't be opened (No such file)"),
        ENDED,
        None,
        "",
    )
    assert outcome == ("data_error", "yes/a.wav: can't be opened (No such file)")


@pytest.mark.parametrize(
    ("ending", "outcome", "evidence"),
    [
        ({"status": None, "timeout": True}, "timeout", "killed at trial_timeout"),
        ({"status": None}, "crashed", "the process tree was killed from outside"),
        (ENDED | {"status": -11}, "crashed", "the training process was killed by signal 11"),
        (ENDED | {"status": 3}, "crashed", "the training process exited with status 3"),
    ],
)
def test_an_end_without_words(ending: dict, outcome: str, evidence: str) -> None:
    assert classify(None, ending, training_end=None, log="") == (outcome, evidence)


def test_the_evidence_of_semaphores_that_do_not_fit_is_its_last_line() -> None:
    said = (
        "in __init__\n    SemLock.__init__(self, SEMAPHORE, value)\n  ...\nOSError: [Errno 28] No"
        " space left on device"
    )
    assert classify(error("OSError", said), ENDED, None, "").evidence.endswith(
        "a batch: OSError: [Errno 28] No space left on device"
    )


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


def test_an_exception_of_the_training_code_is_told_by_type_and_last_line() -> None:
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
