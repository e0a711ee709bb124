"""The model that the client's tests serve, and a transfer that breaks off."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import nn

from tests.end_to_end.serving import Served, bits


class Net(nn.Module):
    """Something of everything: nesting, buffers, a tie, several dtypes, a tensor of more than one chunk."""

    brief: torch.Tensor
    hidden: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU())
        self.head = nn.Linear(16, 4)
        self.twin = self.head
        self.large = nn.Parameter(torch.randn(600, 1000))
        self.register_buffer("brief", torch.randn(3).bfloat16())
        self.register_buffer("hidden", torch.arange(3), persistent=False)

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        y: torch.Tensor = self.twin(self.body(x)) * scale
        return y


def digest_of(tensor: torch.Tensor) -> str:
    """The contract's digest: over dtype name, shape as JSON, raw bytes."""
    dtype, shape, data = bits(tensor)
    hashed = hashlib.sha256(dtype.encode() + json.dumps(list(shape)).encode() + data)
    return f"sha256:{hashed.hexdigest()}"


def net(live: Served) -> Net:
    assert isinstance(live.module, Net)
    return live.module


class Stop(Exception):
    """What a test raises in the middle of a transfer."""


def stop_at(bytes_done: int) -> Any:
    def progress(done: int, total: int) -> None:
        if done >= bytes_done:
            raise Stop

    return progress
