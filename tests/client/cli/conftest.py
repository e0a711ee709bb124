"""A served model, and `modscope` run in this process: exit code, stdout, stderr."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch

import modscope_server
from modscope_client.cli.main import run
from tests.client.cli.models import Reader, reader
from tests.client.golden import compare


@dataclass(frozen=True)
class Outcome:
    """What a run of the program left."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What it printed, parsed."""
        return json.loads(self.out)

    @property
    def lines(self) -> list[str]:
        """What it printed, line by line."""
        return self.out.splitlines()


Modscope = Callable[..., Outcome]


@dataclass(frozen=True)
class Live:
    """A model and its server."""

    model: Reader
    scope: modscope_server.Scope
    optimizer: torch.optim.Optimizer

    def step(self, times: int = 1) -> None:
        """Training iterations of the model."""
        for _ in range(times):
            self.optimizer.zero_grad()
            self.model(torch.arange(5))["logits"].square().mean().backward()
            self.optimizer.step()


@pytest.fixture
def live(monkeypatch: pytest.MonkeyPatch) -> Iterator[Live]:
    """A writable server, to which the program connects when it is told nothing else."""
    model = reader()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.0)
    with modscope_server.attach(model, optimizer=optimizer, writable=True) as scope:
        monkeypatch.setenv("MODSCOPE_ADDRESS", scope.address)
        monkeypatch.setenv("MODSCOPE_TOKEN", scope.token)
        yield Live(model, scope, optimizer)


@pytest.fixture
def training(live: Live) -> Iterator[Live]:
    """The model, trained by another thread."""
    stop = threading.Event()

    def train() -> None:
        while not stop.wait(0.002):
            live.step()

    thread = threading.Thread(target=train)
    thread.start()
    yield live
    stop.set()
    thread.join(30)
    assert not thread.is_alive()


@pytest.fixture
def modscope(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Modscope:
    """Runs `modscope ARGUMENTS`."""
    monkeypatch.setenv("COLUMNS", "80")

    def call(*arguments: str) -> Outcome:
        capsys.readouterr()
        code = run(list(arguments))
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call


@pytest.fixture
def golden() -> Callable[[str, str], None]:
    """Compares a text with the golden file of that name."""
    return lambda name, text: compare(f"cli/{name}.txt", text)
