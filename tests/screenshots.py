"""The pictures of the docs, of a sweep and of MLflow, made again: `make screenshots`, or python -m
tests.screenshots SWEEP [FOLDER]

SWEEP is one of the mlflow.db in FOLDER (here, if not given) with trials that learned;
docs/epoch-seconds.png and docs/mlflow-*.png are overwritten.
"""

import io
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page

from analysis.epoch_time_plot import epoch_seconds
from analysis.runs import sweep_runs
from sweeps.tracking.run_queries import find_sweep
from tests.mlflow_pages import browsing, new_page, open_view, served

DOCS = Path(__file__).parent.parent / "docs"
WIDTH_PX = 1280
COLOURS = 128  # of a page of text and lines; a third of the bytes
MENU_PX = 200  # MLflow's own menu, left of every page


def main(sweep: str, folder: Path) -> None:
    uri = f"sqlite:///{folder}/mlflow.db"
    _, parent = find_sweep(sweep, uri, "speech")
    runs, experiment = sweep_runs(sweep, uri), parent.info.experiment_id
    learned = runs.trials.sort_values("ensemble_accuracy", ascending=False).iloc[0]["run_id"]
    slowest = (
        runs.trials.sort_values("epoch_s", ascending=False)
        .query("`loader.num_workers` > 0")
        .iloc[0]["run_id"]
    )
    DOCS.mkdir(exist_ok=True)
    epoch_seconds(runs).savefig(DOCS / "epoch-seconds.png", dpi=110)
    with served(folder) as server, browsing() as browser:
        pages = f"{server}/#/experiments/{experiment}/runs"
        page = new_page(browser, 1900, 760)
        open_view(page, server, sweep, experiment)
        # the banner that says that this is a view
        page.get_by_role("button", name="Hide banner").click()
        page.locator("[row-index='5']").first.wait_for()
        keep(page, "mlflow-runs")
        page = new_page(browser, 1500, 640)
        page.goto(f"{pages}/{slowest}")
        page.get_by_test_id("show-comment-toggle").click()
        page.get_by_text("time/epoch_s").first.wait_for()
        keep(page, "mlflow-trial")
        page = new_page(browser, 1500, 760)
        page.goto(f"{pages}/{learned}/model-metrics")
        page.get_by_placeholder("Search metric charts").fill("^(loss|time)/")
        page.locator(".js-plotly-plot .scatterlayer .point").nth(20).wait_for()
        keep(page, "mlflow-charts")
        page = new_page(browser, 1500, 900)
        page.goto(f"{pages}/{parent.info.run_id}/artifacts/report.html")
        page.frame_locator("iframe").get_by_role("heading", name=f"Sweep {sweep}").wait_for()
        # a folder of this machine
        page.get_by_text("Path:").first.evaluate(
            "line => line.parentElement.style.visibility = 'hidden'"
        )
        keep(page, "mlflow-report")


def keep(page: Page, name: str) -> None:
    """The page right of MLflow's menu, WIDTH_PX wide at most, as docs/<name>.png."""
    page.mouse.move(0, 0)
    page.wait_for_timeout(1500)  # fonts, colours, columns finding their places
    width, height = (page.viewport_size or {}).values()
    taken = page.screenshot(
        clip={"x": MENU_PX, "y": 0, "width": width - MENU_PX, "height": height},
        animations="disabled",
    )
    image = Image.open(io.BytesIO(taken)).convert("RGB")
    image.thumbnail((WIDTH_PX, height))
    path = DOCS / f"{name}.png"
    image.quantize(COLOURS).save(path, optimize=True)
    print(f"{path.name}: {image.width} x {image.height}, {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1], Path(*sys.argv[2:3]).absolute())
