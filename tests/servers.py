"""A real tracking server that tests stop, freeze and start again."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

from tests.trees import wait_until


class Server:
    """mlflow server on a port of its own, with its database and its artifacts in `folder`."""

    def __init__(self, folder: Path, empty_database: Path) -> None:
        self.folder, self.database = folder, folder / "mlflow.db"
        shutil.copy(empty_database, self.database)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen | None = None
        self.start()

    def start(self) -> None:
        where = [
            "--backend-store-uri",
            f"sqlite:///{self.database}",
            "--artifacts-destination",
            str(self.folder / "artifacts"),
        ]
        command = [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            "--port",
            str(self.port),
            "--workers",
            "1",
            *where,
        ]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self.folder, stdout=log, stderr=log, env=os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"},
                start_new_session=True,
            )  # fmt: skip
        assert wait_until(self.answers, seconds=120), (self.folder / "server.log").read_text()

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=1) as answer:
                return answer.status == 200
        except OSError:
            return False

    def send(self, number: int) -> None:
        assert self.process
        os.killpg(self.process.pid, number)

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Ends it; whatever of it does not heed the signal is killed."""
        if self.process:
            self.send(number)
            try:
                self.process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self.send(signal.SIGKILL)
                self.process.wait()
            self.process = None
