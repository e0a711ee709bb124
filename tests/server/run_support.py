"""A served training loop on a thread of its own, under the control of a test."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

import modscope_server
from modscope.v1 import run_pb2
from tests.server.rpc import TIMEOUT, Rpc, until

__all__ = ["Run", "running", "state_of"]


class Run:
    """A model, a loop over it, and who calls its server.

    Each iteration has a batch of its own, so that the same number of them gives the same weights.
    """

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.scope: Any = None
        self.rpc: Any = None
        self.losses: list[float] = []
        self.error: BaseException | None = None
        self.before_backward: Callable[[int], None] = lambda number: None
        """Called with the number of the iteration, from 1, between forward and backward."""
        self.spoil: Callable[[int, torch.Tensor], torch.Tensor] = lambda number, x: x
        """What an iteration trains on, from its number and its batch."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._train, args=(1 << 60,), name="training", daemon=True)

    def iterate(self, number: int) -> None:
        """One iteration."""
        generator = torch.Generator().manual_seed(number)
        x = self.spoil(number, torch.randn(8, 4, generator=generator))
        self.optimizer.zero_grad()
        loss = self.model(x).square().mean()
        self.before_backward(number)
        loss.backward()
        self.optimizer.step()
        self.scope.step(loss=loss, number=number)
        self.losses.append(loss.item())

    def start(self, iterations: int | None = None) -> None:
        """Train, so many iterations or until the end of the test."""
        if iterations is not None:
            self._thread = threading.Thread(
                target=self._train, args=(iterations,), name="training", daemon=True
            )
        self._thread.start()

    def _train(self, iterations: int) -> None:
        try:
            for number in range(1, iterations + 1):
                if self._stop.is_set():
                    return
                self.iterate(number)
        except BaseException as error:
            self.error = error

    @property
    def ident(self) -> int:
        """The training thread's."""
        assert self._thread.ident is not None
        return self._thread.ident

    def ended(self) -> bool:
        """Wait for the end of the loop."""
        self._thread.join(TIMEOUT)
        return not self._thread.is_alive()

    def end(self) -> None:
        """Stop after this iteration."""
        self._stop.set()
        if self._thread.ident is not None:
            assert self.ended()

    @property
    def status(self) -> run_pb2.RunStatus:
        """What GetRunStatus says."""
        status: run_pb2.RunStatus = self.rpc.GetRunStatus(history=-1).status
        return status

    def paused(self) -> run_pb2.RunStatus:
        """Wait until it is paused; the status then."""
        until(lambda: self.status.state == run_pb2.RUN_STATE_PAUSED)
        return self.status

    def goes_on(self, step: int) -> bool:
        """Wait until it is past that step."""
        until(lambda: self.scope.step_count > step)
        return True


def state_of(run: Run) -> dict[str, torch.Tensor]:
    """All that training has changed."""
    kept = {
        f"{number}.{key}": value
        for number, state in run.optimizer.state_dict()["state"].items()
        for key, value in state.items()
    }
    return {**run.model.state_dict(), **kept}


@contextmanager
def running(*, start: bool = True, **options: Any) -> Iterator[Run]:
    """A run that is served, writable unless told otherwise, and has begun to train unless told otherwise."""
    run = Run()
    with modscope_server.attach(run.model, run.optimizer, **{"writable": True, **options}) as scope:
        with Rpc(scope.address, scope.token) as rpc:
            run.scope, run.rpc = scope, rpc
            if start:
                run.start()
            try:
                assert not start or run.goes_on(0)
                yield run
            finally:
                scope.close()
                run.end()
    if run.error is not None and not isinstance(run.error, KeyboardInterrupt):
        raise run.error
