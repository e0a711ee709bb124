"""The models that are measured, by name, and a process that serves one of them.

python -m benchmarks.models NAME [NUMBER]
"""

from __future__ import annotations

import sys

import torch
from torch import nn

import modscope_server
from benchmarks.processes import answer, forget_peak, peak_memory
from examples.digits import DigitClassifier

__all__ = ["FACTORIES", "bulk", "main", "many"]


def bulk(mebibytes: int = 512) -> nn.Module:
    """Blocks of LayerNorm(2048), Linear(2048, 2048) and ReLU: 16 MiB of weight each, and small tensors."""
    return nn.Sequential(
        *(
            nn.Sequential(nn.LayerNorm(2048), nn.Linear(2048, 2048), nn.ReLU())
            for _ in range(max(1, mebibytes // 16))
        )
    )


def many(modules: int = 100_000) -> nn.Module:
    """Exactly so many modules in three levels: blocks of 90 layers of Linear(1, 1) and ReLU."""
    root = nn.Sequential()
    left = modules - 1
    while left >= 4:
        layers = min(90, (left - 1) // 3)
        root.append(nn.Sequential(*(nn.Sequential(nn.Linear(1, 1), nn.ReLU()) for _ in range(layers))))
        left -= 1 + 3 * layers
    for _ in range(left):
        root.append(nn.Identity())
    return root


def digits(width: int = 16) -> nn.Module:
    """The demo's model."""
    return DigitClassifier(width)


FACTORIES = {"bulk": bulk, "many": many, "digits": digits}


def main() -> None:
    """Serves a model that no loop owns until standard input ends; tells its memory when asked."""
    torch.manual_seed(0)
    factory = FACTORIES[sys.argv[1]]
    model = factory(int(sys.argv[2])) if len(sys.argv) > 2 else factory()
    with modscope_server.attach(model) as scope:
        hello = {"address": scope.address, "token": scope.token}
        answer(hello, {"forget_peak": forget_peak, "peak": peak_memory})


if __name__ == "__main__":
    main()
