"""What the tests of reinitialisation share."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import nn

from modscope_server import reinit
from modscope_server.inspection.backup import same_bits

SEED = 7


ARGUMENTS: dict[str, dict[str, Any]] = {
    "uniform_": {"a": -0.5, "b": 2},
    "normal_": {"mean": 0.25, "std": 0.02},
    "trunc_normal_": {"std": 0.5, "a": -0.1, "b": 0.3},
    "constant_": {"val": 3},
    "dirac_": {"groups": 2},
    "xavier_uniform_": {"gain": 2.0},
    "xavier_normal_": {"gain": 0.5},
    "kaiming_uniform_": {"a": math.sqrt(5)},
    "kaiming_normal_": {"mode": "fan_out", "nonlinearity": "relu"},
    "orthogonal_": {"gain": 1.5},
    "sparse_": {"sparsity": 0.3, "std": 1},
}


def bits(model: nn.Module) -> list[tuple[int, bytes]]:
    """Identity and bytes of every parameter and buffer."""
    tensors = [*model.parameters(), *model.buffers()]
    return [
        (id(t), bytes(t.detach().clone().contiguous().reshape(-1).view(torch.uint8).tolist()))
        for t in tensors
    ]


def random_state() -> int:
    legacy: Any = np.random.get_state()
    states = (random.getstate(), legacy[1].tobytes(), legacy[2:], bytes(torch.get_rng_state().tolist()))
    return hash(states)


def by_hand(model: nn.Module, fn: Callable[[nn.Module], Any]) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model.apply(fn)


class Seen:
    """What a function given to nn.Module.apply has met, so that it initialises a tied tensor once."""

    def __init__(self) -> None:
        self._ids: set[int] = set()

    def new(self, tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
        """Those that are met for the first time."""
        new = [tensor for tensor in tensors if id(tensor) not in self._ids]
        self._ids.update(id(tensor) for tensor in new)
        return new

    def reset(self, module: Any) -> None:
        """The module's reset_parameters, but for what was met before; not run where that is all."""
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        before = [(tensor, tensor.detach().clone()) for tensor in own if id(tensor) in self._ids]
        if not self.new(own):
            return
        module.reset_parameters()
        with torch.no_grad():
            for tensor, value in before:
                tensor.copy_(value)


def run(model: nn.Module, *args: Any, **kwargs: Any) -> reinit.Plan:
    before = random_state()
    try:
        plan = reinit.plan(model, *args, **kwargs)
        reinit.apply(plan)
        return plan
    finally:
        assert random_state() == before


def agree(model: nn.Module, twin: nn.Module) -> bool:
    pairs = zip([*model.parameters(), *model.buffers()], [*twin.parameters(), *twin.buffers()], strict=True)
    return all(same_bits(one, other) for one, other in pairs)
