"""Loops that are watched: a GPT-2 of 12 M parameters, and a small model whose steps take a millisecond."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

__all__ = ["Loop", "gpt2", "small"]


def _nothing() -> None:
    """No work between steps."""


class Loop:
    """A model, its optimizer, and steps of training on the same random batch."""

    def __init__(self, model: nn.Module, loss: Callable[[], torch.Tensor]) -> None:
        self.model = model
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        self._loss = loss

    def block(self, steps: int, after_step: Callable[[], None] = _nothing) -> float:
        """Seconds a step, after one that warms up."""
        self._run(1, after_step)
        began = time.perf_counter()
        self._run(steps, after_step)
        return (time.perf_counter() - began) / steps

    def _run(self, steps: int, after_step: Callable[[], None]) -> None:
        for _ in range(steps):
            self._loss().backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            after_step()


def gpt2(*, quick: bool = False) -> Loop:
    """Six layers of width 384, with batches of 8x128 tokens; quick: one layer, and 16 tokens."""
    from transformers import GPT2Config, GPT2LMHeadModel

    layers, batch = (1, (1, 16)) if quick else (6, (8, 128))
    config = GPT2Config(vocab_size=2048, n_embd=384, n_layer=layers, n_head=6, bos_token_id=0, eos_token_id=1)
    model: Any = GPT2LMHeadModel(config).train()
    model.loss_type = "ForCausalLM"  # what it takes anyway, without a warning
    tokens = torch.randint(0, config.vocab_size, batch)
    return Loop(model, lambda: model(input_ids=tokens, labels=tokens).loss)


def small() -> Loop:
    """Twenty modules, the root included."""
    layers = [nn.Sequential(nn.Linear(64, 64), nn.Tanh()) for _ in range(6)]
    model = nn.Sequential(*layers, nn.Linear(64, 64))
    x, y = torch.randn(2, 128, 64)
    return Loop(model, lambda: (model(x) - y).square().mean())
