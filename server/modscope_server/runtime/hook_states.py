"""What a hook of modscope's does: armed, fired, or blind with a reason. Blind is not empty."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

__all__ = ["HookState", "State", "merged"]

State = Literal["armed", "fired", "blind"]


@dataclass(frozen=True)
class HookState:
    """A hook that modscope has put on a module, and what it does."""

    path: str
    kind: str
    owner: str
    """"watch", "break", "intervention" or "safe point"."""
    watch_ids: tuple[str, ...]
    fired: int
    last_step: int | None
    intervention_id: str = ""
    """Of an intervention: its id."""
    state: State = "armed"
    reason: str = ""
    """Why it is blind, or what it waits for."""
    remedy: str = ""
    """How it is made to fire in compiled code, and what that has cost."""


def merged(states: Iterable[HookState]) -> list[HookState]:
    """Hooks that serve several watches alike as one."""
    found: dict[HookState, tuple[str, ...]] = {}
    for state in states:
        alike = replace(state, watch_ids=())
        found[alike] = (*found.get(alike, ()), *state.watch_ids)
    return [replace(alike, watch_ids=ids) for alike, ids in found.items()]
