"""A step of the demo's loop with modscope attached and nobody connected, beside one without.

One model, one optimizer, one process: attached for a block of steps, closed for the next. What a
closed scope leaves, torch's two global optimizer hooks, is taken away for the blocks without.
"""

from __future__ import annotations

import contextlib
import io
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
from examples.digits import DigitClassifier, digits, train_epoch

__all__ = ["run", "without_global_hooks"]

_EPOCHS = 3


def run(quick: bool) -> list[Row]:
    """Seconds a step, in blocks of three epochs, which are 135 steps."""
    effort = Effort(3, 10, 5.0) if quick else Effort(40, 600, 300.0, width=0.01)
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with workplace():
            loop = _Loop()
            pairs = measure(loop.attached, loop.alone, effort)
    finally:
        torch.set_num_threads(threads)
    ours, others = (statistics.median(side) * 1e6 for side in (pairs.ours, pairs.peers))
    return [
        ratio(
            f"attached and idle, a step of the demo's loop, blocks of {loop.steps}",
            pairs,
            bar=Bar(1.01),
            detail=f"{ours:.0f} beside {others:.0f} us",
        )
    ]


class _Loop:
    """The demo's model, optimizer, data and epoch."""

    def __init__(self) -> None:
        self.model = DigitClassifier()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        self.loader = DataLoader(digits()[0], batch_size=32, shuffle=True)
        self.steps = _EPOCHS * len(self.loader)

    def attached(self) -> float:
        """Seconds a step."""
        with (
            contextlib.redirect_stderr(io.StringIO()),
            modscope_server.attach(self.model, optimizer=self.optimizer, writable=True) as scope,
        ):
            taken = self._block()
            assert scope.step_count == self.steps + len(self.loader)
        return taken

    def alone(self) -> float:
        """Seconds a step."""
        with without_global_hooks():
            return self._block()

    def _block(self) -> float:
        """One epoch to warm up, since attach and close leave cold caches, then the block."""
        train_epoch(self.model, self.optimizer, self.loader)
        began = time.perf_counter()
        for _ in range(_EPOCHS):
            train_epoch(self.model, self.optimizer, self.loader)
        return (time.perf_counter() - began) / self.steps


@contextlib.contextmanager
def without_global_hooks() -> Iterator[None]:
    """Torch's optimizers as they are in a process that never attached."""
    tables: Any = (torch_optimizer._global_optimizer_pre_hooks, torch_optimizer._global_optimizer_post_hooks)
    kept = [dict(table) for table in tables]
    for table in tables:
        table.clear()
    try:
        yield
    finally:
        for table, hooks in zip(tables, kept, strict=True):
            table.update(hooks)
