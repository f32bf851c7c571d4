"""The pictures show the planted figures, say what is seen, and nothing of them is cut off."""

import io
import itertools

import numpy as np
import pytest

from analysis import cycle_plots, plots
from analysis.filters import matching
from analysis.runs import sweep_runs
from tests.conftest import plant_trial
from tests.planted_sweep import MB, PACED, figures, row

PICTURES = {
    plots.epoch_seconds: ("workers", "2 workers at the fastest: 1.54 s an epoch, against 3.31 s with none"),
    plots.where_epochs_go: ("workers", "With 2 workers 32 % of an epoch waits for batches, with none 70 %"),
    plots.shm_peaks: ("workers", "8 workers took 216.0 MiB of /dev/shm at most; shm 64M overflowed with 4 and 8"),
    cycle_plots.training_course: ("cycles", "Cycles of 2 at 80.6 %; one cosine of 8 at 84.1 % in the end"),
    cycle_plots.ensemble_accuracy: ("cycles", "One cosine of 8 reaches 84.1 %, the highest"),
    cycle_plots.snapshot_disagreement: ("cycles", "Two snapshots of a run name 35 % of the validation clips differently at most"),
}


@pytest.fixture(scope="module")
def drawn(first_look):
    frame = sweep_runs("first-look", first_look.uri)
    return {draw: draw(matching(frame, [f"block={block}"])) for draw, (block, _) in PICTURES.items()}


def name(draw):
    return draw.__name__ if callable(draw) else ""


@pytest.mark.parametrize("draw", PICTURES, ids=name)
def test_a_picture_says_what_is_seen(drawn, draw):
    figure = drawn[draw]
    titles = [figure.get_suptitle(), *(axes.get_title(loc="left") for axes in figure.axes)]
    assert PICTURES[draw][1] in " ".join(" ".join(titles).split())


@pytest.mark.parametrize("draw", PICTURES, ids=name)
def test_nothing_is_cut_off_and_no_panel_lies_on_another(drawn, draw):
    figure = drawn[draw]
    figure.savefig(io.BytesIO())  # which lays it out
    whole, tight = figure.bbox_inches, figure.get_tightbbox()
    assert (whole.x0 <= tight.x0, whole.y0 <= tight.y0, tight.x1 <= whole.x1, tight.y1 <= whole.y1) == (True,) * 4
    boxes = [axes.get_tightbbox() for axes in figure.axes]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))


@pytest.mark.parametrize("draw", PICTURES, ids=name)
def test_every_axis_with_numbers_has_a_name(drawn, draw):
    outer = [axes for axes in drawn[draw].axes if axes.get_label() != "<colorbar>"]
    assert outer[-1].get_xlabel()
    assert outer[0].get_ylabel()


@pytest.mark.parametrize("draw", PICTURES, ids=name)
def test_without_trials_there_is_nothing_to_draw(first_look, draw):
    frame = sweep_runs("first-look", first_look.uri)
    with pytest.raises(LookupError):
        draw(frame.iloc[:0])


def test_a_line_a_size_with_its_spread_and_the_forecast_dashed(drawn):
    (axes,) = drawn[plots.epoch_seconds].axes
    lines = [container.lines[0] for container in axes.containers]
    small, large = [3.31, 2.88, 1.54], [3.31, 2.88, 1.54, 1.71, 1.79]
    assert [line.get_ydata().tolist() for line in lines] == [pytest.approx(small), pytest.approx(large)]
    (bars,) = axes.containers[0].lines[2]
    assert [segment[:, 1].tolist() for segment in bars.get_segments()][2] == pytest.approx([1.54 * 0.99, 1.54 * 1.02])
    (dashed,) = (line for line in axes.lines if line.get_linestyle() == "--")
    assert dashed.get_ydata().tolist() == pytest.approx([3.68, 3.02, 1.60, 1.71, 1.96])
    assert sorted(text.get_text() for text in axes.texts if "/" in text.get_text()[:3]) == ["3/3", "3/3"]
    labels = legend(axes)
    told = ["forecast, in its interval", "recommended", "how many of how many overflowed", "fastest to slowest trial"]
    assert labels == ["shm 64M", "shm 1G", *told]
    assert axes.get_ylim()[0] == 0


def legend(axes):
    return [" ".join(text.get_text().split()) for text in axes.get_legend().get_texts()]


LOST = {64: ("shm_exhausted", "oom", "timeout"), 128: ("completed", "data_error", "completed"), 1024: ("completed", "crashed", "completed")}


@pytest.fixture
def crowded(tracking):
    """Three sizes that time out, crash and more, from 2 workers on, in all the ways there are."""
    trials = [
        ({"loader.num_workers": n, "loader.shm_size": size * MB}, repeat) for n in (0, 1, 2, 4) for size in LOST for repeat in (1, 2, 3)
    ]
    parent = tracking.start_sweep("crowded", "", [row("workers", *trial) for trial in trials], "")
    for swept, repeat in trials:
        workers, outcome = swept["loader.num_workers"], LOST[swept["loader.shm_size"] // MB][repeat - 1]
        outcome = outcome if workers > 1 else "completed"
        plant_trial(tracking, parent, swept, repeat, outcome, tags=PACED, **figures(workers, repeat) if outcome == "completed" else {})
    return plots.epoch_seconds(sweep_runs("crowded", tracking.uri))


def test_what_was_lost_in_many_ways_is_told_apart_and_leaves_the_axes_their_room(crowded):
    (axes,) = crowded.axes
    crowded.savefig(io.BytesIO())
    assert axes.get_position().width > 0.5
    texts = [text for text in axes.texts if "/" in text.get_text()[:3]]
    assert sorted(text.get_text() for text in texts) == ["1/3 d"] * 2 + ["1/3 e"] * 2 + ["3/3 a b c"] * 2
    told = ["a: overflowed", "b: out of memory", "c: timed out", "d: bad data", "e: crashed"]
    assert [label for label in legend(axes) if label[1] == ":"] == told
    boxes = [text.get_window_extent() for text in texts]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    assert max(box.y1 for box in boxes) < axes.get_window_extent().y1


def test_texts_above_the_slowest_epochs_stay_below_the_title(tracking):
    """All that was lost was lost at the slowest count."""
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
        plant_trial(tracking, parent, swept, repeat, "timeout" if lost else "completed", tags=PACED, **summary)
    figure = plots.epoch_seconds(sweep_runs("slow", tracking.uri))
    figure.savefig(io.BytesIO())
    (axes,) = figure.axes
    boxes = [text.get_window_extent() for text in axes.texts if text.get_text() == "1/2"]
    assert len(boxes) == 5
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    assert max(box.y1 for box in boxes) < axes.get_window_extent().y1


def test_bars_stand_on_each_other_and_add_up(drawn):
    (axes,) = drawn[plots.where_epochs_go].axes
    tops = [max(patch.get_y() + patch.get_height() for patch in column) for column in zip(*axes.containers, strict=True)]
    assert tops == pytest.approx([3.31, 2.88, 1.54, 1.71, 1.79])
    assert len({container.patches[0].get_hatch() for container in axes.containers}) == 5, "told apart without colours"


def test_peaks_stand_beside_what_was_foreseen_and_the_limits(drawn):
    (axes,) = drawn[plots.shm_peaks].axes
    found = {line.get_label(): np.asarray(line.get_ydata(), float).tolist() for line in axes.lines}
    assert found["most taken by a trial that ran through"] == pytest.approx([18, 54, 108, 216])
    assert found["foreseen: no trial takes more"] == pytest.approx([54, 90, 162, 306])
    assert set(found["overflowed"]) == {64}
    assert {line.get_ydata()[0] for line in axes.lines if line.get_label().startswith("_")} == {64, 1024}


def test_snapshots_stand_at_their_cycles_ends(drawn):
    short, _ = np.array(drawn[cycle_plots.training_course].axes).reshape(3, 2)[2]
    (marked,) = (line for line in short.lines if line.get_marker() == "D")
    assert marked.get_xdata().tolist() == [2, 4, 6, 8]
    assert marked.get_ydata()[-1] == pytest.approx(0.806)


def test_an_ensemble_is_a_line_by_its_snapshots(drawn):
    (axes,) = drawn[cycle_plots.ensemble_accuracy].axes
    short, cosine = (container.lines[0].get_ydata().tolist() for container in axes.containers)
    assert short == pytest.approx([100 * (2.501 / 3 - 0.03 * more) for more in (3, 2, 1, 0)])
    assert cosine == pytest.approx([100 * 2.524 / 3])


def test_pairs_are_written_into_their_cells(drawn):
    axes = drawn[cycle_plots.snapshot_disagreement].axes[0]
    found = {(int(text.get_position()[1]), int(text.get_position()[0])): text.get_text() for text in axes.texts}
    assert found == {(0, 0): "25", (1, 0): "30", (1, 1): "25", (2, 0): "35", (2, 1): "30", (2, 2): "25"}
