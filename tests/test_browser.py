"""A launched sweep in MLflow's own pages, as people browse them: a real server, a real Chromium
(.ci/run installs Debian's).

Every wait is for something that a person would wait for to appear, never for a time.
"""

import gzip
import json
import re
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from analysis.runs import sweep_runs
from sweeps.tracking.run_queries import find_sweep
from tests.mlflow_pages import CHROMIUM, PATIENCE_S, browsing, new_page, open_view, served

pytestmark = [
    pytest.mark.slow,
    pytest.mark.beside,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium here (Debian: apt install chromium)"),
]
expect.set_options(timeout=1000 * PATIENCE_S)


@pytest.fixture(scope="module")
def server(launched):
    """Where MLflow shows the launched sweep's tracker."""
    with served(launched[0]) as url:
        yield url


@pytest.fixture(scope="module")
def browser():
    with browsing() as browser:
        yield browser


@pytest.fixture
def page(browser):
    # the table of runs makes cells of the columns that are in sight alone
    page = new_page(browser, width=3000)
    yield page
    page.context.close()


@pytest.fixture(scope="module")
def runs(launched):
    return sweep_runs("planted", f"sqlite:///{launched[0]}/mlflow.db").trials.set_index(
        "run_id", drop=False
    )


@pytest.fixture(scope="module")
def sweep_id(launched) -> str:
    _, parent = find_sweep("planted", f"sqlite:///{launched[0]}/mlflow.db", "speech")
    return parent.info.run_id


def cell(page: Page, run_id: str, column: str) -> str:
    """Returns what the table of runs has in a trial's row, once it is drawn; '' for its dash."""
    row = (
        page.locator(f"a[href$='/runs/{run_id}']")
        .locator("xpath=ancestor::*[@row-index]")
        .first.get_attribute("row-index")
    )
    shown = page.locator(f"[row-index='{row}'] [col-id='{column}']").first
    expect(shown).not_to_have_text("")  # the table draws its cells one after the other
    text = shown.inner_text().strip()
    return "" if text == "-" else text


def test_the_sweeps_view_nests_its_trials_and_its_columns_are_our_tables(
    page, server, runs
) -> None:
    open_view(page, server, "planted")
    for trial in runs.itertuples():
        expect(page.locator(f"a[href$='/runs/{trial.run_id}']")).to_be_visible()
        assert cell(page, trial.run_id, "tags.`outcome`") == trial.outcome
        for name in ("epoch_s", "shm_peak_bytes", "ensemble_accuracy"):
            shown, ours = (
                cell(page, trial.run_id, f"metrics.`{name}`"),
                runs.loc[trial.run_id, name],
            )
            assert (float(shown) if shown else None) == (
                None if ours != ours else pytest.approx(ours, rel=1e-6)
            )
    workers = runs[runs["block"] == "workers"]
    shown = {
        (cell(page, run, "tags.`loader.num_workers`"), cell(page, run, "tags.`loader.shm_size`"))
        for run in workers["run_id"]
    }
    assert shown == {("0", "4M"), ("0", "64M"), ("2", "4M"), ("2", "64M")}


def test_a_filter_finds_the_trial_that_overflowed(page, server, runs) -> None:
    page.goto(f"{server}/#/experiments/1/runs")
    search = page.get_by_test_id("search-box")
    search.fill("tags.outcome = 'shm_exhausted' and params.`loader.num_workers` = '2'")
    search.press("Enter")
    overflowed = runs[runs["outcome"] == "shm_exhausted"]
    # the trial, and MLflow adds its sweep
    expect(page.get_by_text(re.compile(r"^\s*2\s+matching runs"))).to_be_visible()
    page.locator(".ag-row button").first.click()
    expect(page.locator("[col-id='attributes.`Run Name`'] a")).to_have_text(
        ["planted", overflowed["run_name"].item()]
    )


def test_notes_say_what_a_run_is_and_lead_from_the_sweep_to_its_trials(
    page, server, runs, sweep_id
) -> None:
    overflowed = runs[runs["outcome"] == "shm_exhausted"].iloc[0]
    page.goto(f"{server}/#/experiments/1/runs/{overflowed['run_id']}")
    expect(page.get_by_text("A trial of block workers, repeat 1")).to_be_visible()
    expect(page.get_by_text(overflowed["evidence"][:40]).first).to_be_visible()
    page.goto("about:blank")
    page.goto(f"{server}/#/experiments/1/runs/{sweep_id}")
    page.get_by_test_id("show-comment-toggle").click()
    with page.context.expect_page() as opened:
        page.get_by_role("link", name="All trials with").click()
    expect(opened.value.get_by_test_id("search-box")).to_have_value("tags.sweep = 'planted'")


def test_charts_show_a_metric_epoch_by_epoch(page, server, runs) -> None:
    learned = runs[runs["block"] == "cycles"].iloc[0]
    page.goto(f"{server}/#/experiments/1/runs/{learned['run_id']}/model-metrics")
    page.get_by_placeholder("Search metric charts").fill("time/epoch_s")
    chart = page.locator(".js-plotly-plot", has_text="Step").first
    expect(chart.locator(".scatterlayer .point")).to_have_count(2)


def test_the_report_and_a_trace_open_from_the_artifacts(page, server, runs, sweep_id) -> None:
    page.goto(f"{server}/#/experiments/1/runs/{sweep_id}/artifacts")
    page.get_by_text("report.html", exact=True).first.click()
    expect(
        page.frame_locator("iframe").get_by_role("heading", name="Sweep planted")
    ).to_be_visible()
    page.goto("about:blank")
    timed = runs[(runs["block"] == "workers") & (runs["outcome"] == "completed")].iloc[0]
    page.goto(f"{server}/#/experiments/1/runs/{timed['run_id']}/artifacts")
    page.get_by_text("trace.json.gz", exact=True).first.click()
    expect(page.get_by_text(re.compile(r"Path: .*trace\.json\.gz"))).to_be_visible()
    with page.expect_download() as download:
        # the only one of this view
        page.locator("button[data-component-id*='artifactview']").click()
    trace = json.loads(gzip.decompress(Path(download.value.path()).read_bytes()))
    assert {event["name"] for event in trace["traceEvents"]} >= {"step"}
