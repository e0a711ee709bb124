"""A change that is planned and not yet carried out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from modscope_server.inspection.memento import Memento

__all__ = ["Change", "Plan"]


@dataclass(frozen=True, slots=True)
class Change:
    """What would be done to a model. Made and carried out at one safe point."""

    paths: tuple[str, ...]
    """What it touches, as Operation.paths tells it."""
    memento: Memento
    """All that it touches, as it is before."""
    apply: Callable[[], tuple[str, ...]]
    """Does it and gives notes for the caller. Where it raises, the memento puts everything back."""


Plan: TypeAlias = Callable[[], Change]
"""Resolves names and refuses what can be refused, at a safe point; changes nothing."""
