"""A change of a model that is planned, checked, and not yet carried out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from modscope_server.inspection.memento import Memento

__all__ = ["Change", "Plan"]


def _nothing(before: Mapping[str, str]) -> tuple[str, ...]:
    return ()


@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """A change that is planned and not yet carried out. Made and used at one safe point."""

    paths: tuple[str, ...]
    """Of the tensors that it touches."""
    memento: Memento
    """What it touches, as it is now; for rollback, undo and digests."""
    apply: Callable[[], tuple[str, ...]]
    """Does it and gives notes for the caller; where it raises, the memento is put back."""
    remark: Callable[[Mapping[str, str]], tuple[str, ...]] = _nothing
    """Gives notes that need the digests of before, which are known only after the safe point."""
    known: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """By path, values that it is sure to leave: of them the loop need not wait for a copy."""


Plan = Callable[[], Change]
"""Runs at the safe point: resolves names, refuses what can be refused, changes nothing."""
