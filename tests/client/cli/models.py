"""A small model whose numbers are the same everywhere, for outputs that are compared letter by letter."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["Reader", "reader"]


class Reader(nn.Module):
    """A tied embedding, a frozen block, buffers of both kinds, a bare parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.body = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.BatchNorm1d(4))
        self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.embed.weight
        self.scale = nn.Parameter(torch.ones(4))
        self.register_buffer("mask", torch.ones(4, dtype=torch.bool), persistent=False)
        self.body[0].requires_grad_(False)

    def forward(self, ids: torch.Tensor, bias: torch.Tensor | None = None) -> dict[str, torch.Tensor | None]:
        """Logits and hidden state of a row of ids."""
        hidden = self.body(self.embed(ids)) * self.scale * self.mask
        logits = self.head(hidden)
        return {"logits": logits if bias is None else logits + bias, "hidden": hidden, "loss": None}


def reader() -> Reader:
    """The model with evenly spaced numbers in the weights of its layers, in evaluation mode."""
    model = Reader().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name == "scale":
                continue
            numbers = torch.arange(parameter.numel()) - parameter.numel() // 2
            parameter.copy_((numbers / 8).reshape(parameter.shape))
    return model
