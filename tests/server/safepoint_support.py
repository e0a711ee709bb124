"""The model and the iteration on which the safe point is tested."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

__all__ = ["small_model", "train"]


def small_model() -> nn.Module:
    """Two linear layers, from a fixed seed."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, between: Callable[[str], None] = lambda where: None
) -> None:
    """One iteration; `between` is called after the "forward" and after the "backward"."""
    optimizer.zero_grad()
    loss = model(torch.randn(16, 4)).square().mean()
    between("forward")
    loss.backward()
    between("backward")
    optimizer.step()
