"""The parameter groups of an optimizer as it keeps them: dicts of hyper-parameters and of what they hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.optim import Optimizer

__all__ = ["MEMBERS", "held_by", "options_of"]

MEMBERS = ("params", "param_names")
"""Entries of a group that are no hyper-parameters but lists of what it holds."""


def held_by(optimizer: Optimizer) -> list[torch.Tensor]:
    """The tensors that an optimizer's groups hold, in order."""
    return [param for group in list(optimizer.param_groups) for param in list(group["params"])]


def options_of(group: Mapping[str, Any]) -> dict[str, Any]:
    """The hyper-parameters of a group, in its order."""
    return {name: value for name, value in list(group.items()) if name not in MEMBERS}
