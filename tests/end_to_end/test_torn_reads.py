"""No read mixes two steps, however slowly and in however many pieces an optimizer writes.

MODSCOPE_STRESS=34 makes more than 20,000 reads; `make stress` does.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy
import torch
from torch import nn

from modscope_client import connect
from modscope_client.handles import RemoteModel
from modscope_server import Limits
from tests.end_to_end.serving import TIMEOUT, running_loop, served, until

READS = 600 * int(os.environ.get("MODSCOPE_STRESS", "1"))
PIECES = 8


class InPieces(torch.optim.Optimizer):
    """Rewrites every element, and its own state of it, to the number of the step, in pieces."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        super().__init__(parameters, {})
        self.number = 0

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.number += 1
        held = [parameter for group in self.param_groups for parameter in group["params"]]
        for piece in range(PIECES):
            for parameter in held:
                state = self.state[parameter]
                state.setdefault("exp_avg", torch.zeros_like(parameter))
                for tensor in (parameter, state["exp_avg"]):
                    tensor.view(PIECES, -1)[piece] = self.number


class Wide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.zeros(64, 128))
        self.b = nn.Parameter(torch.zeros(8, 16))
        self.register_buffer("steps", torch.zeros(2))

    def forward(self) -> torch.Tensor:
        return self.a.sum() + self.b.sum()


def _numbers(arrays: Mapping[str, Any]) -> set[float]:
    return {float(value) for array in arrays.values() for value in numpy.unique(array)}


def _one_tensor(model: RemoteModel) -> tuple[set[float], int]:
    array, step = model.read("a", with_step=True)
    return _numbers({"a": array}), step


def _several(model: RemoteModel) -> tuple[set[float], int]:
    arrays, step = model.read(["a", "b"], with_step=True)
    return _numbers(arrays), step


def _optimizer_state(model: RemoteModel) -> tuple[set[float], int]:
    arrays, step = model.read(["a", "b"], what="exp_avg", with_step=True)
    return _numbers(arrays), step


def _state_dict(model: RemoteModel) -> tuple[set[float], int]:
    state = model.state_dict()
    numbers = _numbers({key: array for key, array in state.items() if key != "steps"})
    return numbers, int(min(numbers))


def _statistics(model: RemoteModel) -> tuple[set[float], int]:
    found = [info.stats for info in model.parameters(stats=True)]
    edges = {edge for stats in found if stats is not None for edge in (stats.min, stats.max)}
    numbers = {float(edge) for edge in edges if edge is not None}
    return numbers, int(min(numbers))


READERS: list[Callable[[RemoteModel], tuple[set[float], int]]] = [
    _one_tensor,
    _several,
    _optimizer_state,
    _state_dict,
    _statistics,
]


def test_no_read_is_torn() -> None:
    model = Wide()
    optimizer = InPieces(model.parameters())

    def iterate() -> None:
        optimizer.zero_grad()
        model().backward()
        optimizer.step()

    torn: list[tuple[str, set[float], int]] = []
    steps: dict[str, list[int]] = {reader.__name__: [] for reader in READERS}

    def read(reader: Callable[[RemoteModel], tuple[set[float], int]], address: str, token: str) -> None:
        with connect(address, token=token, timeout=TIMEOUT) as client:
            remote = client.model()
            for _ in range(READS // len(READERS)):
                numbers, step = reader(remote)
                steps[reader.__name__].append(step)
                if numbers != {float(step)}:
                    torn.append((reader.__name__, numbers, step))

    with served(model, optimizer, limits=Limits(read_share=1.0)) as live, running_loop(iterate):
        until(lambda: optimizer.number > 2, "steps")
        threads = [
            threading.Thread(target=read, args=(reader, live.scope.address, live.scope.token))
            for reader in READERS
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert torn == []
    for name, found in steps.items():
        assert len(found) == READS // len(READERS), f"{name} ended early"
        assert found == sorted(found), name
        assert len(set(found)) > 10, f"{name}: the loop stood still"
