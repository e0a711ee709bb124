"""A model that costs nothing, served by a process of its own: modules that give on what they are given.

python -m benchmarks.sources MODULES BYTES
"""

from __future__ import annotations

import sys
import time

import torch
from torch import nn

import modscope_server
from benchmarks.processes import answer
from modscope_server import Limits

__all__ = ["STATISTICS", "TENSORS", "Source", "main"]

STATISTICS = {"glob": "parts.*"}
"""A watch of all modules but the root, which gives nothing."""

TENSORS = {**STATISTICS, "payload": "tensor", "overflow": "block", "block_ms": 10_000}
"""The same for whole tensors: nothing is lost, the model runs as fast as they are taken."""


class Source(nn.Module):
    """Modules, and a tensor of its own for each, so that what was seen of one serves no other."""

    def __init__(self, modules: int, size: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Identity() for _ in range(modules))
        self._tensors = [torch.randn(size // 4) for _ in range(modules)]

    def forward(self) -> None:
        """Every module gets its tensor."""
        for part, tensor in zip(self.parts, self._tensors, strict=True):
            part(tensor)


def main() -> None:
    """Serves, and runs the model when it is told to, until standard input ends."""
    torch.set_num_threads(1)
    model = Source(int(sys.argv[1]), int(sys.argv[2]))
    with modscope_server.attach(model, limits=Limits(queue=1 << 20, block_ms=60_000)) as scope:

        def run(passes: int) -> float:
            """So many steps of one pass. Gives when the first began."""
            began = time.perf_counter()
            for _ in range(passes):
                model()
                scope.step()
            return began

        answer({"address": scope.address, "token": scope.token}, {"run": run})


if __name__ == "__main__":
    main()
