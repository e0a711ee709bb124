"""A training loop that tells its losses by step, to be rewound; also a process of its own.

Its batches are those of its step count. Everything else that it draws comes from global generators:
dropout from torch's, augmentation from numpy's and Python's.
"""

from __future__ import annotations

import json
import random
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy
import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, TensorDataset

import modscope_server

__all__ = ["KINDS", "Rewinding", "passes"]

BATCHES = 64


def _lambda_lr(optimizer: Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.97**epoch)


KINDS: dict[str, tuple[Callable[[Any], Optimizer], Callable[[Optimizer], Any]]] = {
    "SGD": (lambda params: torch.optim.SGD(params, lr=0.02, momentum=0.9), lambda optimizer: None),
    "AdamW": (lambda params: torch.optim.AdamW(params, lr=0.01), lambda optimizer: None),
    "AdamW and LambdaLR": (lambda params: torch.optim.AdamW(params, lr=0.01), _lambda_lr),
    "fused Adam and OneCycleLR": (
        lambda params: torch.optim.Adam(params, lr=0.01, fused=True),
        lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.02, total_steps=10**6),
    ),
    "RMSprop and a plateau": (
        lambda params: torch.optim.RMSprop(params, lr=0.001, momentum=0.5, foreach=True),
        lambda optimizer: torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=2),
    ),
}
"""What makes optimizer and scheduler."""


class Rewinding:
    """The loop: one iteration at each call, whose loss is noted."""

    def __init__(self, kind: str, seed: int = 0, *, zeroes: bool = True, scaled: bool = False) -> None:
        torch.manual_seed(seed)
        numpy.random.seed(seed)
        random.seed(seed)
        make_optimizer, make_scheduler = KINDS[kind]
        self.model = nn.Sequential(
            nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 1)
        )
        self.optimizer = make_optimizer(self.model.parameters())
        self.scheduler = make_scheduler(self.optimizer)
        # Grows every second step and soon overflows, so that steps are skipped now and then.
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**118, growth_interval=2, enabled=scaled)
        self.losses: list[tuple[int, float]] = []
        """Step count at which an iteration began, and its loss."""
        self._zeroes = zeroes
        self._batches = _batches()

    def attach(self, **options: Any) -> modscope_server.Scope:
        """Serve it, with its scheduler as an extra."""
        extras = {"scheduler": self.scheduler} if self.scheduler is not None else {}
        if self.scaler.is_enabled():
            extras["scaler"] = self.scaler
        self.scope = modscope_server.attach(
            self.model, self.optimizer, writable=True, extras=extras, **options
        )
        return self.scope

    def __call__(self) -> None:
        step = self.scope.step_count
        x, y = self._batches[step % BATCHES]
        x = x + torch.from_numpy(numpy.random.normal(0, 0.1, x.shape)).float() + random.gauss(0, 0.1)
        loss = nn.functional.mse_loss(self.model(x), y)
        if self._zeroes or step % 7 == 0:
            self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if isinstance(self.scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            self.scheduler.step(loss.item())
        elif self.scheduler is not None:
            self.scheduler.step()
        self.losses.append((step, loss.item()))


def passes(losses: list[tuple[int, float]]) -> list[list[tuple[int, float]]]:
    """The losses, cut where the loop was sent back or ahead.

    After a skipped step the count stays, and catches up with the next one.
    """
    runs: list[list[tuple[int, float]]] = [[]]
    for step, loss in losses:
        if runs[-1] and not 0 <= step - runs[-1][-1][0] <= 2:
            runs.append([])
        runs[-1].append((step, loss))
    return runs


def _batches() -> list[Any]:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(BATCHES * 8, 6, generator=generator)
    data = TensorDataset(x, x.sin().sum(1, keepdim=True))
    return list(DataLoader(data, batch_size=8, shuffle=True, generator=generator))


def main(kind: str, seed: int) -> None:
    """Train until a line comes in, then print the losses."""
    torch.set_num_threads(1)
    loop = Rewinding(kind, seed)
    stop = threading.Event()

    def wait() -> None:
        sys.stdin.readline()
        stop.set()

    threading.Thread(target=wait, daemon=True).start()
    with loop.attach() as scope:
        print(json.dumps([scope.address, scope.token]), flush=True)
        while not stop.is_set():
            loop()
    print(json.dumps(loop.losses), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
