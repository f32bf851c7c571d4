"""Tables 1 and 2 of a block that sweeps the form, against planted trials."""

import pytest

from analysis.loader_keys import key_times, tables
from analysis.tables import body
from tests.planted_sweep import PACED, figures
from tests.random_runs import Drawn, frame_of

AS = {"png": 1, "wav": 2, "packed": 4}  # a form takes what so many workers take in the planted sweep

PAGE = """\
point        epoch s                 n  against the fastest
-----------  ----------------------  -  -------------------
form=packed  1.71 (1.69-1.74)        3  +11% (+11% to +11%)
form=png     2.87 s, 1 of 3 crashed  2  not enough data
form=wav     1.54 (1.52-1.57)        3  the fastest
"""


@pytest.fixture(scope="module")
def frame():
    trials = [({"loader.form": form, "loader.num_workers": 2}, repeat) for form in AS for repeat in (1, 2, 3)]
    crashed = ({"loader.form": "png", "loader.num_workers": 2}, 2)
    ended = [("crashed", {}) if trial == crashed else ("completed", figures(AS[trial[0]["loader.form"]], trial[1])) for trial in trials]
    return frame_of([Drawn("forms", *trial, *end, PACED) for trial, end in zip(trials, ended, strict=True)])


def test_a_row_a_form_compared_with_the_fastest(frame):
    rows = key_times(frame).set_index("point")
    assert rows["n"].to_dict() == {"form=packed": 3, "form=png": 2, "form=wav": 3}
    assert rows["median_s"].to_dict() == pytest.approx({"form=packed": 1.71, "form=png": 2.88 * 0.995, "form=wav": 1.54})
    assert rows.loc["form=packed", ["change", "change_low", "change_high"]].tolist() == pytest.approx([1.71 / 1.54 - 1] * 3)
    assert rows.loc[["form=png", "form=wav"], "change"].isna().all()
    assert rows.loc["form=png", "outcomes"] == "1 of 3 crashed"
    assert rows.loc["form=wav", ["part_wait_s", "part_n"]].tolist() == pytest.approx([0.40, 3])


def test_the_pages(frame):
    times, parts = tables(frame)
    assert times.startswith("Epoch seconds by form, block forms\n")
    assert PAGE in "\n".join(map(str.rstrip, times.splitlines()))
    assert parts.startswith("Where an epoch goes by form, block forms\n")
    assert "\nMedians over 2 to 3 trials. The host's seconds" in parts
    wav = next(line.split() for line in parts.splitlines() if "form=wav" in line)
    assert wav == ["form=wav", "0.00", "0.09", "0.40", "0.99", "0.06", "1.54", "805"]
    assert max(map(len, body(frame).splitlines())) <= 100
    assert "| form=wav | 1.54 (1.52-1.57)" in " ".join(tables(frame, markdown=True)[0].split())


def test_blocks_that_sweep_workers_or_nothing_of_the_loader_are_left_out():
    workers = [Drawn("workers", {"loader.num_workers": count}, 1, "completed", figures(count, 1), PACED) for count in (0, 2)]
    cycles = [Drawn("cycles", {"sgdr.cycle_epochs": epochs}, 1, "completed", figures(0, 1), PACED) for epochs in (2, 8)]
    assert key_times(frame_of([*workers, *cycles])).empty


def test_a_form_that_has_not_run_yet_has_a_row():
    trials = [Drawn("forms", {"loader.form": form}, 1, outcome, figures(AS[form], 1), PACED)
              for form, outcome in (("png", "completed"), ("wav", "completed"), ("packed", None))]  # fmt: skip
    frame = frame_of(trials)
    assert key_times(frame).set_index("point")["not_run"].to_dict() == {"form=png": 0, "form=wav": 0, "form=packed": 1}
    line = next(line for line in tables(frame)[0].splitlines() if line.startswith("form=packed"))
    assert " ".join(line.split()) == "form=packed not run yet 0 -"
