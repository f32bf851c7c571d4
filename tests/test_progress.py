"""Tests the live view: the remaining time, the table, and that the terminal is restored."""

import contextlib
import fcntl
import io
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from sweeps.execution.progress import Lines, LiveTable, open_view
from sweeps.execution.remaining_time import RemainingTime, RunningTrial
from sweeps.execution.trial_result import EpochEnd, TrialResult
from sweeps.trial_states import Outcome
from tests.trees import wait_until

ROOT = Path(__file__).parent.parent


def trial(key: str, block: str = "workers", epochs: int = 4, **swept: object) -> SimpleNamespace:
    swept = {f"loader.{name}": value for name, value in swept.items()} or {"loader.num_workers": 4}
    return SimpleNamespace(
        trial_id=key,
        block=block,
        repeat=1,
        swept=swept,
        config=SimpleNamespace(
            sgdr=SimpleNamespace(epochs=epochs),
            loader=SimpleNamespace(num_workers=swept.get("loader.num_workers", 0)),
        ),
    )


COMPLETED = TrialResult(Outcome.COMPLETED, "", {"epoch_s": 1.5}, "records.jsonl", {})
CRASHED = TrialResult(Outcome.CRASHED, "KeyError: 'planted'", {}, "stderr.log", {})


def test_the_remaining_time_is_the_forecast_scaled_by_the_ended_trials() -> None:
    remaining = RemainingTime({"a": 10.0, "b": 20.0, "c": 30.0, "d": None, "e": None})
    waiting = [trial("b"), trial("c"), trial("d", block="cycles")]
    assert remaining.remaining_s(waiting, [], 0) == (50, 1)
    remaining.took_s["a"] = (trial("a"), 12.0)
    assert remaining.factor == pytest.approx(1.2)
    assert remaining.remaining_s(waiting, [], 0) == (pytest.approx(60), 1)
    remaining.took_s["e"] = (trial("e", block="cycles"), 7.0)
    assert remaining.remaining_s(waiting, [], 0) == (
        pytest.approx(67),
        0,
    ), "without a forecast, an ended trial of the same block is the estimate"


def test_trials_with_and_without_workers_are_corrected_apart() -> None:
    """Their forecasts follow from different measured costs, of which one may be wrong."""
    remaining = RemainingTime(dict.fromkeys("abcd", 10.0))
    remaining.took_s["a"] = (trial("a", num_workers=0), 1.0)
    waiting = [trial("b", num_workers=0), trial("c", num_workers=2)]
    remaining.took_s["d"] = (trial("d", num_workers=4), 11.0)
    assert [remaining.remaining_s([spec], [], 0)[0] for spec in waiting] == [
        pytest.approx(1.0),
        pytest.approx(11.0),
    ]


def test_replayed_epochs_take_no_time() -> None:
    now = 100.0
    table = LiveTable("s", RemainingTime({}), Console(), clock=lambda: now)
    spec = trial("a")
    table.begin([spec])
    table.on_start(spec)
    for epoch in (0, 1):
        table.on_epoch(spec, EpochEnd(epoch, True))
    now = 130.0
    table.on_epoch(spec, EpochEnd(2, False))
    assert table.running["a"].remaining_s(None, now) == 30.0 * (spec.config.sgdr.epochs - 3)
    for epoch in range(3, spec.config.sgdr.epochs):
        now += 30.0
        table.on_epoch(spec, EpochEnd(epoch, False))
    table.on_trial_end(spec, COMPLETED, "")
    assert table.remaining.took_s["a"][1] == pytest.approx(30.0 * spec.config.sgdr.epochs)


def test_the_remaining_time_of_a_running_trial_follows_its_epochs() -> None:
    remaining = RemainingTime({"a": 10.0, "b": 10.0})
    running = RunningTrial(trial("a"), began=100.0)
    assert remaining.remaining_s([], [running], 103.0) == (7, 0)
    running.epochs, running.latest = 2, 108.0  # 4 s each
    assert remaining.remaining_s([], [running], 109.0) == (7, 0)
    assert remaining.remaining_s([], [running], 130.0) == (0, 0)
    beside = RunningTrial(trial("b"), began=100.0)
    assert remaining.remaining_s([], [running, beside], 109.0) == (
        4,
        0,
    ), "two trials at once share the remaining 7 and 1 s"


class Terminal:
    """Holds a live table of `trials` in a terminal of this size, and the clock that it reads."""

    def __init__(self, trials: list, width: int, height: int = 40) -> None:
        self.out, self.now = io.StringIO(), 0.0
        console = Console(
            file=self.out,
            force_terminal=True,
            color_system=None,
            width=width,
            height=height,
            highlight=False,
        )
        self.view = LiveTable(
            "planted",
            RemainingTime({each.trial_id: 10.0 for each in trials}),
            console,
            lambda: self.now,
        )
        self.view.begin(trials)

    def drawn(self) -> list[str]:
        with self.view.console.capture() as caught:
            self.view.console.print(self.view.render())
        return [line.rstrip() for line in caught.get().splitlines()]


def test_ended_and_running_trials_are_rows_of_one_table() -> None:
    trials = [trial(f"k{n}", num_workers=n, shm_size=64 << 20) for n in range(4)]
    terminal = Terminal(trials, 80)
    terminal.view.on_start(trials[0])
    terminal.now = 12.0
    terminal.view.on_trial_end(trials[0], COMPLETED, "1/4 it ended")
    terminal.view.on_start(trials[1])
    terminal.now = 17.0
    terminal.view.on_epoch(trials[1], EpochEnd(0, False))
    terminal.now = 19.0
    lines = terminal.drawn()
    # 3 x 5 - 2, and 2 x 12
    *heading, notes = re.split(r"\s{2,}", lines[1])
    assert heading == ["planted", "1 of 4", "━━━───────────"]
    assert re.findall(r"\d[\d.]*(?: s\b)?", notes) == ["37 s", "1.20"]
    assert [line.split() for line in lines[2:4]] == [
        ["num_", "shm_"],
        ["block", "workers", "size", "repeat"],
    ]
    assert re.split(r"\s{2,}", lines[5].strip()) == ["workers", "0", "64M", "1", "1.50 s an epoch"]
    assert re.split(r"\s{2,}", lines[6].strip()) == [
        "workers",
        "1",
        "64M",
        "1",
        "━━━─────────── 1/4 0:07",
    ]
    assert terminal.out.getvalue() == "", "no trial failed, so nothing is printed above"


def test_a_failure_is_printed_above_and_stays() -> None:
    terminal = Terminal([trial("a"), trial("b")], 80)
    failure = "1/2  workers  crashed: KeyError: 'planted' [not markup]"
    terminal.view.on_trial_end(trial("a"), CRASHED, failure)
    terminal.view.on_trial_end(
        trial("b"),
        CRASHED._replace(outcome=Outcome.SHM_EXHAUSTED),
        "an overflow is a result",
    )
    assert terminal.out.getvalue() == f"{failure}\n"
    assert [line.split()[-1] for line in terminal.drawn()[5:]] == ["crashed", "shm_exhausted"]


@pytest.mark.parametrize(("width", "height"), [(40, 12), (80, 24), (120, 50)])
def test_a_thousand_trials_of_many_swept_keys_fit_the_terminal(width: int, height: int) -> None:
    keys = (
        "num_workers",
        "shm_size",
        "prefetch_factor",
        "batch_size",
        "start_method",
        "persistent_workers",
        "format",
    )
    trials = [trial(f"k{n}", **dict.fromkeys(keys, n)) for n in range(1000)]
    terminal = Terminal(trials, width, height)
    for each in trials[:600]:
        terminal.view.on_trial_end(each, COMPLETED, "")
    for each in trials[600:602]:
        terminal.view.on_start(each)
    lines = terminal.drawn()
    assert len(lines) < height
    assert max(map(len, lines)) <= width
    assert "600 of 1000" in lines[1]
    assert [line.endswith("0/4 0:00") for line in lines[-3:]] == [
        False,
        True,
        True,
    ], "the running trials are the last rows, and none is missing"
    assert ("…" in lines[-1]) == (width < 120), (
        "in a narrow terminal the values share one truncated column"
    )


def test_a_second_round_counts_its_trials_as_not_ended() -> None:
    terminal = Terminal([trial("a"), trial("b")], 80)
    for each in (trial("a"), trial("b")):
        terminal.view.on_trial_end(each, COMPLETED, "")
    terminal.view.begin([trial("b")])
    assert "1 of 2" in terminal.drawn()[1]


def test_without_a_terminal_lines_are_printed(monkeypatch) -> None:
    printed: list[str] = []
    with open_view("planted", {}, printed.append) as view:
        assert isinstance(view, Lines)
        view.on_start(trial("a"))
        view.on_trial_end(trial("a"), COMPLETED, "1/1  it ended")
        view.log("a line")
    assert printed == ["1/1  it ended", "a line"]


IN_A_TERMINAL = """
import sys, time
from tests.test_progress import COMPLETED, CRASHED, trial
from sweeps.execution.progress import open_view
trials = [trial(f"k{n}", num_workers=n) for n in range(3)]
try:
    with open_view("planted", {}, print) as view:
        view.begin(trials)
        view.on_start(trials[0])
        view.on_trial_end(trials[0], CRASHED, "1/3  it crashed")
        view.on_start(trials[1])
        view.log("a logged line")
        print("under way", file=sys.stderr, flush=True)
        time.sleep(float(sys.argv[1]))
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_real_terminal_has_its_cursor_back_and_keeps_the_printed_lines(
    interrupted: bool, tmp_path
) -> None:
    main, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 80, 0, 0))
    command = [sys.executable, "-c", IN_A_TERMINAL, "60" if interrupted else "0"]
    with (tmp_path / "stderr").open("w") as errors:
        process = subprocess.Popen(command, cwd=ROOT, stdin=its, stdout=its, stderr=errors, env=os.environ | {"TERM": "xterm-256color"},
                                   start_new_session=True)  # fmt: skip
    os.close(its)
    if interrupted:
        assert wait_until(lambda: "under way" in (tmp_path / "stderr").read_text(), seconds=60)
        process.send_signal(signal.SIGINT)
    text = ""
    with contextlib.suppress(OSError):  # how Linux says that the other end has closed
        while block := os.read(main, 65536):
            text += block.decode()
    os.close(main)
    assert process.wait(60) == 0
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1
    assert text.rindex("\x1b[?25h") > text.rindex("0/4"), (
        "the cursor is shown again after the last drawing"
    )
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    assert "1/3  it crashed" in plain
    assert "a logged line" in plain
    assert ("interrupted" in plain) == interrupted
