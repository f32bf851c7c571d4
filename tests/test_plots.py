"""Tests that pictures show the planted figures, state them in the title, and are not cut off."""

import io
import itertools
import re

import numpy as np
import pytest

from analysis import cycle_plots, ensemble_plot, epoch_parts_plot, epoch_time_plot, shm_plot
from analysis.filters import filter_trials
from analysis.runs import sweep_runs
from speech.sgdr import learning_rate
from tests.conftest import plant_trial
from tests.planted_sweep import CPU, MB, SIMULATED, figures, file_records, row

PICTURES = {  # picture -> block, and the figures of its title in order
    epoch_time_plot.epoch_seconds: ("workers", ["2 workers", "1.54 s", "3.31 s"]),
    epoch_parts_plot.where_epochs_go: ("workers", ["2 workers", "32 %", "70 %"]),
    shm_plot.shm_peaks: ("workers", ["8 workers", "216.0 MiB", "shm 64M", "4 and 8"]),
    cycle_plots.training_course: ("cycles", ["2 at 80.6 %", "8 at 84.1 %"]),
    ensemble_plot.ensemble_accuracy: ("cycles", ["cosine of 8", "84.1 %"]),
    cycle_plots.snapshot_disagreement: ("cycles", ["35 %"]),
}


@pytest.fixture(scope="module")
def drawn(first_look):
    runs = sweep_runs("first-look", first_look.uri)
    return {
        draw: draw(filter_trials(runs, [f"block={block}"])) for draw, (block, _) in PICTURES.items()
    }


def name(draw):
    return draw.__name__ if callable(draw) else ""


@pytest.mark.parametrize("draw", PICTURES, ids=name)
def test_a_title_states_the_figures_of_its_picture(drawn, draw):
    figure = drawn[draw]
    titles = [figure.get_suptitle(), *(axes.get_title(loc="left") for axes in figure.axes)]
    facts = PICTURES[draw][1]
    assert re.search(".*".join(map(re.escape, facts)), " ".join(" ".join(titles).split()))


@pytest.mark.parametrize("draw", PICTURES, ids=name)
def test_nothing_is_cut_off_and_no_panel_lies_on_another(drawn, draw):
    figure = drawn[draw]
    figure.savefig(io.BytesIO())  # which lays it out
    whole, tight = figure.bbox_inches, figure.get_tightbbox()
    assert (
        whole.x0 <= tight.x0,
        whole.y0 <= tight.y0,
        tight.x1 <= whole.x1,
        tight.y1 <= whole.y1,
    ) == (True,) * 4
    boxes = [axes.get_tightbbox() for axes in figure.axes]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))


@pytest.mark.parametrize("draw", PICTURES, ids=name)
def test_every_axis_with_numbers_has_a_name(drawn, draw):
    outer = [axes for axes in drawn[draw].axes if axes.get_label() != "<colorbar>"]
    assert outer[-1].get_xlabel()
    assert outer[0].get_ylabel()


@pytest.mark.parametrize("draw", PICTURES, ids=name)
def test_without_trials_there_is_nothing_to_draw(first_look, draw):
    runs = sweep_runs("first-look", first_look.uri)
    with pytest.raises(LookupError):
        draw(runs.with_trials(runs.trials.iloc[:0]))


def test_a_line_a_size_with_its_spread_and_the_forecast_dashed(drawn):
    (axes,) = drawn[epoch_time_plot.epoch_seconds].axes
    lines = [container.lines[0] for container in axes.containers]
    small, large = [3.31, 2.88, 1.54], [3.31, 2.88, 1.54, 1.71, 1.79]
    assert [line.get_ydata().tolist() for line in lines] == [
        pytest.approx(small),
        pytest.approx(large),
    ]
    (bars,) = axes.containers[0].lines[2]
    assert [segment[:, 1].tolist() for segment in bars.get_segments()][2] == pytest.approx(
        [1.54 * 0.99, 1.54 * 1.02]
    )
    (dashed,) = (line for line in axes.lines if line.get_linestyle() == "--")
    assert dashed.get_ydata().tolist() == pytest.approx([3.68, 3.02, 1.60, 1.71, 1.96])
    assert sorted(text.get_text() for text in axes.texts if "/" in text.get_text()[:3]) == [
        "3/3",
        "3/3",
    ]
    labels = legend(axes)
    assert labels[:2] == ["shm 64M", "shm 1G"]
    for label, word in zip(
        labels[2:], ("forecast", "recommended", "overflowed", "slowest"), strict=True
    ):
        assert word in label
    assert axes.get_ylim()[0] == 0


def test_a_forecast_far_off_leaves_the_axis_to_what_was_measured(first_look):
    block = PICTURES[epoch_time_plot.epoch_seconds][0]
    runs = filter_trials(sweep_runs("first-look", first_look.uri), [f"block={block}"])
    names = [name for name in runs.trials if name.startswith("forecast_epoch")]
    wrong = runs.with_trials(runs.trials.assign(**{name: 12 * runs.trials[name] for name in names}))
    (axes,) = epoch_time_plot.epoch_seconds(wrong).axes
    slowest_s = runs.trials["epoch_s"].max()
    assert slowest_s < axes.get_ylim()[1] < 1.5 * slowest_s


def legend(axes):
    return [" ".join(text.get_text().split()) for text in axes.get_legend().get_texts()]


LOST = {
    64: ("shm_exhausted", "oom", "timeout"),
    128: ("completed", "data_error", "completed"),
    1024: ("completed", "crashed", "completed"),
}


@pytest.fixture
def crowded(tracking):
    """Returns the picture of a sweep that loses trials of three sizes, with every outcome."""
    trials = [
        ({"loader.num_workers": n, "loader.shm_size": size * MB}, repeat)
        for n in (0, 1, 2, 4)
        for size in LOST
        for repeat in (1, 2, 3)
    ]
    parent = tracking.start_sweep("crowded", "", [row("workers", *trial) for trial in trials], "")
    for swept, repeat in trials:
        workers, outcome = (
            swept["loader.num_workers"],
            LOST[swept["loader.shm_size"] // MB][repeat - 1],
        )
        outcome = outcome if workers > 1 else "completed"
        plant_trial(
            tracking,
            parent,
            swept,
            repeat,
            outcome,
            tags=SIMULATED,
            **figures(workers, repeat) if outcome == "completed" else {},
        )
    return epoch_time_plot.epoch_seconds(sweep_runs("crowded", tracking.uri))


def test_lost_trials_are_marked_by_outcome_and_leave_the_axes_their_room(crowded):
    (axes,) = crowded.axes
    crowded.savefig(io.BytesIO())
    assert axes.get_position().width > 0.5
    texts = [text for text in axes.texts if "/" in text.get_text()[:3]]
    assert (
        sorted(text.get_text() for text in texts)
        == ["1/3 d"] * 2 + ["1/3 e"] * 2 + ["3/3 a b c"] * 2
    )
    told = ["a: overflowed", "b: out of memory", "c: timed out", "d: bad data", "e: crashed"]
    assert [label for label in legend(axes) if label[1] == ":"] == told
    boxes = [text.get_window_extent() for text in texts]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    assert max(box.y1 for box in boxes) < axes.get_window_extent().y1


def test_texts_above_the_slowest_epochs_stay_below_the_title(tracking):
    """Plants a sweep that loses trials at the slowest worker count only."""
    sizes = [size * MB for size in (64, 128, 256, 512, 1024)]
    trials = [
        ({"loader.num_workers": workers, "loader.shm_size": size}, repeat)
        for workers in (0, 1, 2, 4, 8)
        for size in sizes
        for repeat in (1, 2)
    ]
    parent = tracking.start_sweep("slow", "", [row("workers", *trial) for trial in trials], "")
    for swept, repeat in trials:
        lost = repeat == 2 and swept["loader.num_workers"] == 0
        summary = {} if lost else figures(swept["loader.num_workers"], repeat)
        plant_trial(
            tracking,
            parent,
            swept,
            repeat,
            "timeout" if lost else "completed",
            tags=SIMULATED,
            **summary,
        )
    figure = epoch_time_plot.epoch_seconds(sweep_runs("slow", tracking.uri))
    figure.savefig(io.BytesIO())
    (axes,) = figure.axes
    boxes = [text.get_window_extent() for text in axes.texts if text.get_text() == "1/2"]
    assert len(boxes) == 5
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    assert max(box.y1 for box in boxes) < axes.get_window_extent().y1


def test_bars_stand_on_each_other_and_add_up(drawn):
    (axes,) = drawn[epoch_parts_plot.where_epochs_go].axes
    tops = [
        max(patch.get_y() + patch.get_height() for patch in column)
        for column in zip(*axes.containers, strict=True)
    ]
    assert tops == pytest.approx([3.31, 2.88, 1.54, 1.71, 1.79])
    assert len({container.patches[0].get_hatch() for container in axes.containers}) == 5, (
        "told apart without colours"
    )


def test_peaks_stand_beside_the_forecast_and_the_limits(drawn):
    (axes,) = drawn[shm_plot.shm_peaks].axes
    found = {line.get_label(): np.asarray(line.get_ydata(), float).tolist() for line in axes.lines}
    by_word = {
        word: [values for label, values in found.items() if word in label]
        for word in ("peak", "forecast", "overflowed")
    }
    assert by_word["peak"] == [pytest.approx([18, 54, 108, 216])]
    assert by_word["forecast"] == [pytest.approx([54, 90, 162, 306])]
    assert [set(values) for values in by_word["overflowed"]] == [{64}]
    assert {line.get_ydata()[0] for line in axes.lines if line.get_label().startswith("_")} == {
        64,
        1024,
    }


def test_snapshots_stand_at_their_cycles_ends(drawn):
    short, _ = np.array(drawn[cycle_plots.training_course].axes).reshape(3, 2)[2]
    (marked,) = (line for line in short.lines if line.get_marker() == "D")
    assert marked.get_xdata().tolist() == [2, 4, 6, 8]
    assert marked.get_ydata()[-1] == pytest.approx(0.806)


def test_an_ensemble_is_a_line_by_its_snapshots(drawn):
    (axes,) = drawn[ensemble_plot.ensemble_accuracy].axes
    short, cosine = (container.lines[0].get_ydata().tolist() for container in axes.containers)
    assert short == pytest.approx([100 * (2.501 / 3 - 0.03 * more) for more in (3, 2, 1, 0)])
    assert cosine == pytest.approx([100 * 2.524 / 3])


def test_pairs_are_written_into_their_cells(drawn):
    axes = drawn[cycle_plots.snapshot_disagreement].axes[0]
    found = {
        (int(text.get_position()[1]), int(text.get_position()[0])): text.get_text()
        for text in axes.texts
    }
    assert found == {
        (0, 0): "25",
        (1, 0): "30",
        (1, 1): "25",
        (2, 0): "35",
        (2, 1): "30",
        (2, 2): "25",
    }


@pytest.fixture
def rates(tracking):
    """Returns a sweep of four schedules at two learning rates, with accuracies of 0.9 and 0.4 and
    disagreements of 10 and 60 %."""
    points = [
        ({"sgdr.lr": lr, "sgdr.lr_min": lr / 10, "sgdr.cycle_epochs": epochs}, 1)
        for lr in (0.1, 0.001)
        for epochs in (1, 2, 4, 8)
    ]
    parent = tracking.start_sweep("rates", "", [row("cycles", *point) for point in points], "")
    for swept, repeat in points:
        high, members = swept["sgdr.lr"] > 0.05, 8 // swept["sgdr.cycle_epochs"]
        accuracy, share = (0.9, 0.1) if high else (0.4, 0.6)
        run = plant_trial(
            tracking,
            parent,
            swept,
            repeat,
            block="cycles",
            tags=CPU,
            accuracy=accuracy,
            ensemble_accuracy=accuracy,
        )
        for epoch in range(8):
            tracking.log_epoch(
                run,
                epoch,
                {
                    "lr": swept["sgdr.lr"] / 10,
                    "loss/training": 1.0,
                    "accuracy/validation": accuracy,
                },
            )
        records = [
            {"kind": "snapshot", "cycle": cycle, "metrics": {}, "disagreements": [share] * cycle}
            for cycle in range(members)
        ]
        file_records(tracking, run, records)
    return sweep_runs("rates", tracking.uri)


def panel_titles(figure):
    return [title for axes in figure.axes if (title := axes.get_title())]


def whole(figure):
    """Returns whether nothing of a figure is cut off and no panel overlaps another."""
    figure.savefig(io.BytesIO())
    tight, boxes = figure.get_tightbbox(), [axes.get_tightbbox() for axes in figure.axes]
    inside = (
        min(tight.x0, tight.y0) >= 0
        and tight.x1 <= figure.get_figwidth()
        and tight.y1 <= figure.get_figheight()
    )
    return inside and not any(
        one.overlaps(other) for one, other in itertools.combinations(boxes, 2)
    )


def test_schedules_of_two_learning_rates_are_told_apart(rates):
    some = filter_trials(rates, ["cycle_epochs=2"])
    courses, pairs = cycle_plots.training_course(some), cycle_plots.snapshot_disagreement(some)
    assert (
        panel_titles(courses)
        == panel_titles(pairs)
        == ["cycles of 2\nlr=0.1 lr_min=0.01", "cycles of 2\nlr=0.001 lr_min=0.0001"]
    )
    assert [axes.lines[0].get_ydata()[0] for axes in courses.axes[4:6]] == [0.9, 0.4]
    assert [axes.texts[0].get_text() for axes in pairs.axes[:2]] == ["10", "60"]
    title, details = courses.get_suptitle().splitlines()
    assert re.findall(r"\d+\.\d", title) == ["40.0", "90.0"]
    assert details.split(", ") == ["block cycles", "repeat 1"]
    assert whole(courses)
    assert whole(pairs)


def test_what_does_not_fit_is_counted(rates):
    courses, pairs = cycle_plots.training_course(rates), cycle_plots.snapshot_disagreement(rates)
    assert panel_titles(courses) == ["cycles of 1", "cycles of 2", "cycles of 4", "one cosine of 8"]
    details = [figure.get_suptitle().splitlines()[-1].split(", ") for figure in (courses, pairs)]
    assert details == [
        ["block cycles", "lr=0.1 lr_min=0.01", "repeat 1", "4 of 8 shown"],
        ["block cycles", "mean over trials", "4 of 6 shown"],
    ]
    assert " 60 %" in pairs.get_suptitle(), "the most of all, shown or not"
    assert (
        "shown" not in cycle_plots.training_course(filter_trials(rates, ["lr=0.1"])).get_suptitle()
    )
    assert whole(courses)
    assert whole(pairs)


def test_the_learning_rate_is_drawn_as_it_was_trained_with(rates):
    figure = cycle_plots.training_course(filter_trials(rates, ["lr=0.1"]))
    for axes, epochs in zip(figure.axes, (1, 2, 4, 8), strict=False):
        line, recorded = axes.lines[:2]
        # at a restart it has two values
        steps = [step for step in range(800) if step % (100 * epochs)]
        trained = [learning_rate(step, [100 * epochs] * (8 // epochs), 0.1, 0.01) for step in steps]
        assert np.interp(np.array(steps) / 100, *line.get_data()) == pytest.approx(
            trained, abs=1e-4
        )
        assert line.get_ydata().max() == pytest.approx(0.1)
        assert recorded.get_linestyle() == "None"
        assert recorded.get_xdata().tolist() == list(range(1, 9))
    scheduled, ends = legend(figure.axes[3])
    assert "scheduled" in scheduled
    assert "end" in ends


def test_a_trial_without_epochs_leaves_the_others_their_room(tracking):
    """Plants a trial with an accuracy but without epoch records."""
    parent = tracking.start_sweep(
        "bare", "", [row("cycles", {"sgdr.lr": lr}, 1) for lr in (0.1, 0.01)], ""
    )
    for lr in (0.1, 0.01):
        plant_trial(
            tracking,
            parent,
            {"sgdr.lr": lr},
            1,
            block="cycles",
            tags=CPU,
            accuracy=0.5,
            ensemble_accuracy=0.5,
        )
    assert whole(cycle_plots.training_course(sweep_runs("bare", tracking.uri)))
