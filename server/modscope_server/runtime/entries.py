"""An entry of the ledger: what one mutating call did."""

from __future__ import annotations

import time
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field

from modscope_server.inspection.memento import Memento

__all__ = ["Entry"]


@dataclass(slots=True, eq=False)
class Entry:
    """One mutating call. The ledger alone changes it, and `complete` once, when the digests are known."""

    kind: str
    model: str
    who: str
    step: int
    """step_count at which it took effect."""
    id: str = ""
    number: int = 0
    """Its place in the order of all."""
    paths: tuple[str, ...] = ()
    outcome: str = "applied"
    """ "applied", "dry_run" or "failed"."""
    request_id: str = ""
    undoes: Entry | None = None
    """The operation that it undid."""
    memento: Memento | None = None
    """What it touched, as it was before; None where that was let go."""
    keys: frozenset[Hashable] = frozenset()
    """What it touched, by identity."""
    beneath: Mapping[Hashable, Entry | None] = field(default_factory=dict)
    """Of an undo: what was in effect last, for each key, once it had undone."""
    time: float = field(default_factory=time.time)
    undone_by: Entry | None = None
    lost: str = ""
    """Why there is no memento."""
    notes: tuple[str, ...] = ()
    before: Mapping[str, str] = field(default_factory=dict)
    after: Mapping[str, str] = field(default_factory=dict)

    def complete(self, notes: tuple[str, ...], before: Mapping[str, str], after: Mapping[str, str]) -> None:
        """Say what is known only after the safe point."""
        self.notes, self.before, self.after = notes, before, after
