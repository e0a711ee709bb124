"""Training scripts in processes of their own: started, spoken to line by line, and seen to end."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

__all__ = ["PREAMBLE", "Script", "running"]

PREAMBLE = """
import os, sys, threading
import torch
from torch import nn
torch.set_num_threads(1)
import modscope_server

def serve(**options):
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scope = modscope_server.attach(model, optimizer, writable=True, **options)
    print(scope.address, scope.token, flush=True)
    return model, optimizer, scope

def step(model, optimizer, x=torch.ones(2, 4)):
    optimizer.zero_grad()
    model(x).sum().backward()
    optimizer.step()
"""
SECONDS = 90.0
"""Longest wait for a script to end; one that hangs would wait for ever."""


@dataclass(frozen=True)
class Script:
    """A running script that has attached."""

    process: subprocess.Popen[str]
    address: str
    token: str
    errors: IO[str]

    def go_on(self) -> None:
        """Give the script a line to read."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def line(self) -> str:
        """The next line that it prints."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def end(self) -> tuple[int, str, str]:
        """Exit code, the rest of stdout, and stderr, once it has ended by itself."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        out = self.process.stdout.read()
        code = self.process.wait(SECONDS)
        self.errors.seek(0)
        return code, out, self.errors.read()


@contextmanager
def running(body: str, *, warnings: str = "error") -> Iterator[Script]:
    """Run PREAMBLE and `body`, which calls `serve()` first."""
    environment = {**os.environ, "GRPC_VERBOSITY": "ERROR"}
    environment.pop("GRPC_ENABLE_FORK_SUPPORT", None)
    command = [sys.executable, "-W", warnings, "-X", "faulthandler", "-c", PREAMBLE + textwrap.dedent(body)]
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment,
        ) as process,
    ):
        assert process.stdout is not None
        try:
            words = process.stdout.readline().split()
            if len(words) != 2:
                process.wait(SECONDS)
                errors.seek(0)
                raise AssertionError(f"the script did not attach: {errors.read()}")
            address, token = words
            yield Script(process, address, token, errors)
        finally:
            if process.poll() is None:
                process.kill()
