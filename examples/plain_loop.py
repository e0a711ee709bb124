"""A training loop without a torch Optimizer: scope.step() marks where one iteration ends.

    python examples/plain_loop.py --steps 20000

From another terminal: `modscope models` shows the step count, `modscope get layer.weight` a value.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from torch import nn

import modscope_server

__all__ = ["Line", "main"]


class Line(nn.Module):
    """y = a x + b, to be found from points."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Values [N, 1] at x [N, 1]."""
        y: torch.Tensor = self.layer(x)
        return y


def main(arguments: Sequence[str] | None = None) -> None:
    """Fits the line y = 3 x - 1 by gradient descent written out by hand."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=2000)
    options = parser.parse_args(arguments)

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = Line()
    with modscope_server.attach(model, writable=True) as scope:
        for _ in range(options.steps):
            x = torch.rand(64, 1)
            loss = (model(x) - (3 * x - 1)).square().mean()
            loss.backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.grad is not None:  # frozen parameters have none
                        parameter.sub_(0.1 * parameter.grad)
                        parameter.grad.zero_()
            scope.step(loss=loss.item())
        slope, offset = model.layer.weight.item(), model.layer.bias.item()
        print(f"after {scope.step_count} steps: y = {slope:.3f} x + {offset:.3f}")


if __name__ == "__main__":
    main()
