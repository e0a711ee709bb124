"""A training step of the demo's model with modscope attached and nobody connected, beside one without.

One model, one optimizer, one process: attached for a block of steps, closed for the next. What a
closed scope leaves, torch's two global optimizer hooks, is taken away for the blocks without.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import statistics
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch.optim import optimizer as torch_optimizer
from torch.utils.data import DataLoader

import modscope_server
from benchmarks.measure import Bar, Effort, Row, measure, ratio
from benchmarks.processes import workplace
from examples.digits import DigitClassifier, digits

__all__ = ["run"]

_WARM_UP = 50


def run(quick: bool) -> list[Row]:
    """Seconds a step, in blocks of 100 steps."""
    steps, effort = (100, Effort(3, 10, 5.0)) if quick else (100, Effort(40, 600, 240.0))
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with workplace():
            loop = _Loop()
            pairs = measure(lambda: loop.attached(steps), lambda: loop.alone(steps), effort)
    finally:
        torch.set_num_threads(threads)
    ours, others = (statistics.median(side) * 1e6 for side in (pairs.ours, pairs.peers))
    return [
        ratio(
            f"attached and idle, a step of the demo's model, blocks of {steps}",
            pairs,
            bar=Bar(1.01),
            detail=f"{ours:.0f} beside {others:.0f} us",
        )
    ]


class _Loop:
    """The demo's loop, over batches loaded beforehand: a step is no longer than its own work."""

    def __init__(self) -> None:
        self.model = DigitClassifier()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        self._batches = itertools.cycle(list(DataLoader(digits()[0], batch_size=32, drop_last=True)))

    def attached(self, steps: int) -> float:
        """Seconds a step."""
        with (
            contextlib.redirect_stderr(io.StringIO()),
            modscope_server.attach(self.model, optimizer=self.optimizer, writable=True) as scope,
        ):
            taken = self._block(steps)
            assert scope.step_count == steps + _WARM_UP
        return taken

    def alone(self, steps: int) -> float:
        """Seconds a step."""
        with _without_global_hooks():
            return self._block(steps)

    def _block(self, steps: int) -> float:
        for _ in range(_WARM_UP):
            self._step()
        began = time.perf_counter()
        for _ in range(steps):
            self._step()
        return (time.perf_counter() - began) / steps

    def _step(self) -> None:
        images, labels = next(self._batches)
        self.optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(self.model(images), labels)
        loss.backward()
        self.optimizer.step()
        loss.item()


@contextlib.contextmanager
def _without_global_hooks() -> Iterator[None]:
    tables: Any = (torch_optimizer._global_optimizer_pre_hooks, torch_optimizer._global_optimizer_post_hooks)
    kept = [dict(table) for table in tables]
    for table in tables:
        table.clear()
    try:
        yield
    finally:
        for table, hooks in zip(tables, kept, strict=True):
            table.update(hooks)
