"""Loops that are watched: a GPT-2 of 12 M parameters, and a small model whose steps take a millisecond."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

__all__ = ["Loop", "gpt2", "lean_hooks", "small"]


class Loop:
    """A model, its optimizer, and steps of training on the same random batch."""

    def __init__(self, model: nn.Module, loss: Callable[[], torch.Tensor]) -> None:
        self.model = model
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        self._loss = loss

    def block(self, steps: int) -> float:
        """Seconds a step, after one that warms up."""
        self._run(1)
        began = time.perf_counter()
        self._run(steps)
        return (time.perf_counter() - began) / steps

    def _run(self, steps: int) -> None:
        for _ in range(steps):
            self._loss().backward()
            self.optimizer.step()
            self.optimizer.zero_grad()


def gpt2(layers: int = 6) -> Loop:
    """Layers of width 384, with batches of 8x128 tokens."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=2048, n_embd=384, n_layer=layers, n_head=6, bos_token_id=0, eos_token_id=1)
    model: Any = GPT2LMHeadModel(config).train()
    tokens = torch.randint(0, config.vocab_size, (8, 128))
    return Loop(model, lambda: model(input_ids=tokens, labels=tokens).loss)


def small() -> Loop:
    """Twenty modules and their root."""
    layers = [nn.Sequential(nn.Linear(64, 64), nn.Tanh()) for _ in range(6)]
    model = nn.Sequential(*layers, nn.Linear(64, 64))
    x, y = torch.randn(2, 128, 64)
    return Loop(model, lambda: (model(x) - y).square().mean())


def lean_hooks(model: nn.Module) -> Callable[[], None]:
    """Hooks as one writes them who knows what is fast: the reductions of the statistics, in five passes.

    Gives a function that takes them off.
    """
    latest: dict[nn.Module, tuple[float, ...]] = {}

    def reduce(module: nn.Module, args: Any, output: torch.Tensor) -> None:
        flat = output.detach().view(-1)
        low, high = torch.aminmax(flat)
        values = low, high, flat.sum(), torch.dot(flat, flat), torch.count_nonzero(flat)
        latest[module] = tuple(value.item() for value in values)

    handles = [module.register_forward_hook(reduce) for module in model.modules()]

    def remove() -> None:
        assert len(latest) == len(handles)
        for handle in handles:
            handle.remove()

    return remove
