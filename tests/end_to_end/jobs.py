"""Training jobs as processes: started, found through their server.json, and never left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from modscope_client import Client, connect
from tests.end_to_end.serving import TIMEOUT, until

__all__ = ["EXAMPLES", "Job", "job"]

EXAMPLES = Path(__file__).parents[2] / "examples"


class Job:
    """A training job and where it serves."""

    def __init__(self, runtime: Path, command: tuple[str, ...], folder: Path | None) -> None:
        self.runtime = runtime
        self.environment = {**os.environ, "MODSCOPE_RUNTIME_DIR": str(runtime), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, *command],
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
        )

    def server(self) -> dict[str, Any]:
        """What its server.json tells, once it is there."""
        until(lambda: self.process.poll() is not None or self._told(), "server.json")
        assert self.process.poll() is None, self.process.communicate()
        server: dict[str, Any] = json.loads(self._told()[0].read_text())
        return server

    def client(self) -> Client:
        """A client with the operator token."""
        server = self.server()
        return connect(server["address"], token=server["token"], timeout=TIMEOUT)

    def go_on(self) -> None:
        """Gives it a line to read."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self, signal: int | None = None) -> tuple[int, str, str]:
        """Sends a signal, where one is given, and waits: exit code, stdout, stderr."""
        if signal is not None:
            self.process.send_signal(signal)
        out, err = self.process.communicate(timeout=TIMEOUT)
        return self.process.returncode, out, err

    def _told(self) -> list[Path]:
        return list(self.runtime.glob("*/server.json"))


@contextmanager
def job(*command: str, folder: Path | None = None) -> Iterator[Job]:
    """Runs `python COMMAND` in a folder as long as the block; killed at its end where it still runs."""
    with tempfile.TemporaryDirectory(prefix="ms-") as runtime:
        running = Job(Path(runtime), command, folder)
        try:
            yield running
        finally:
            if running.process.poll() is None:
                running.process.kill()
            running.process.communicate()
