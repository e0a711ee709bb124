"""How long a training loop stands still while a whole state_dict is read, beside one memcpy of that size.

The loop is a process of its own, the reader another. The stall is the longest iteration of a second and a
half in which the read falls, less the median iteration. The peer is one copy of the same bytes by numpy in
this process: into memory that nobody has touched, and into memory that is warm.
"""

from __future__ import annotations

import statistics
import sys
import threading
import time
from collections.abc import Callable

import numpy
import torch
from torch import nn

import modscope_server
from benchmarks.measure import Bar, Effort, Row, measure, ratio
from benchmarks.processes import Child, answer, workplace
from modscope_server import Limits

__all__ = ["main", "run"]

_SECONDS = 1.5
_TENSORS = 32


def run(quick: bool) -> list[Row]:
    """The stall beside a memcpy into untouched memory, and into warm memory."""
    mebibytes, effort = (64, Effort(3, 4, 5.0)) if quick else (512, Effort(12, 60, 120.0))
    with workplace() as place, Child("benchmarks.stall", str(mebibytes)) as loop:
        hello = loop.hello
        file = str(place / "unused.safetensors")
        with Child("benchmarks.bulk_read", hello["address"], hello["token"], file) as reader:

            def stall() -> float:
                reading = threading.Thread(target=reader.ask, args=("read",))
                reading.start()
                taken: float = loop.ask("stall")
                reading.join()
                return taken

            return [
                _beside(stall, mebibytes, effort, "untouched", Bar(1.5)),
                _beside(stall, mebibytes, effort, "warm", None),
            ]


def _beside(stall: Callable[[], float], mebibytes: int, effort: Effort, memory: str, bar: Bar | None) -> Row:
    source = numpy.ones(mebibytes << 20, "uint8")
    warm = numpy.zeros_like(source)

    def copy() -> float:
        began = time.perf_counter()
        numpy.copyto(warm if memory == "warm" else numpy.empty_like(source), source)
        return time.perf_counter() - began

    pairs = measure(stall, copy, effort)
    ours, others = (statistics.median(side) * 1e3 for side in (pairs.ours, pairs.peers))
    return ratio(
        f"stall of one state_dict() of {mebibytes} MiB, beside a memcpy into {memory} memory",
        pairs,
        bar=bar,
        detail=f"{ours:.0f} beside {others:.0f} ms",
    )


class _Heavy(nn.Module):
    """Much to read, little to compute."""

    def __init__(self, mebibytes: int) -> None:
        super().__init__()
        rows = mebibytes * 2**20 // 4 // 1024 // _TENSORS
        self.held = nn.ParameterList(torch.ones(rows, 1024) for _ in range(_TENSORS))
        self.used = nn.Linear(64, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.used(x)
        return y


def main() -> None:
    """A training loop that runs when it is told to, and tells how long it stood still."""
    torch.set_num_threads(1)
    model = _Heavy(int(sys.argv[1]))
    model.held.requires_grad_(False)
    optimizer = torch.optim.SGD(model.used.parameters(), lr=1e-3)
    x = torch.randn(256, 64)

    def iterate() -> float:
        began = time.perf_counter()
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        return time.perf_counter() - began

    def stall() -> float:
        taken: list[float] = []
        ends = time.perf_counter() + _SECONDS
        while time.perf_counter() < ends:
            taken.append(iterate())
        return max(taken) - statistics.median(taken)

    with modscope_server.attach(model, optimizer=optimizer, limits=Limits(read_share=1.0)) as scope:
        stall()
        answer({"address": scope.address, "token": scope.token}, {"stall": stall})


if __name__ == "__main__":
    main()
