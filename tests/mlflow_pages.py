"""MLflow's pages in a real Chromium: a server as `make ui` starts it, and a browser. For
tests/test_browser.py and tests/screenshots.py."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

from sweeps import environment
from sweeps.environment_variables import MLFLOW
from tests.trees import wait_until

PATIENCE_S = 120.0  # of a busy machine; a quiet one takes a second or two
CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """The URL under which `mlflow server` shows the mlflow.db in `folder` meanwhile."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    command += [
        "--backend-store-uri",
        "sqlite:///mlflow.db",
        "--default-artifact-root",
        "mlartifacts",
    ]
    variables = os.environ | environment.fixed_variables(MLFLOW)
    # it would start ten processes of its own
    variables["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=variables,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        assert wait_until(lambda: _answers(f"http://127.0.0.1:{port}/health"), PATIENCE_S), (
            f"no answer from {' '.join(command)}"
        )
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, 15)
        process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


@contextlib.contextmanager
def browsing() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # a container's root may have none
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def new_page(browser: Browser, width: int = 1280, height: int = 800) -> Page:
    """A page of somebody who has never been here, but for MLflow's assistant, which would open
    itself over the right third."""
    page = browser.new_context(viewport={"width": width, "height": height}).new_page()
    page.add_init_script(
        "localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')"
    )
    page.set_default_timeout(1000 * PATIENCE_S)
    return page


def open_view(page: Page, server: str, sweep: str, experiment_id: str = "1") -> None:
    """The table of runs as the sweep's saved view has it, its trials unfolded."""
    page.goto(f"{server}/#/experiments/{experiment_id}/runs")
    page.get_by_test_id("saved-views-trigger").click()
    page.get_by_text(sweep, exact=True).last.click()
    # the only row there is: the sweep's, with its trials folded
    page.locator(".ag-row button").first.click()
