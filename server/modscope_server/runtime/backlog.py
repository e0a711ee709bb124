"""What one subscriber has yet to take, and, where it may resume, what it has taken last."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Sequence
from itertools import repeat
from typing import TypeAlias

from modscope_server.runtime.budget import Budget
from modscope_server.runtime.drafts import Draft

__all__ = ["Backlog", "Entry"]

Entry: TypeAlias = tuple[int, Draft, int]
"""Sequence number, draft, and bytes of its tensors."""

_GAPS = 4096
"""Runs of dropped events that are remembered."""


class Backlog:
    """A queue with two bounds that counts what it loses: published = taken + dropped + waiting, always.

    Locks nothing.

    Args:
        events: bound in events, those that were taken and are kept included.
        size: bound in bytes of tensors, likewise.
        budget: what all queues hold together.
        keeps: whether what is taken is kept, for as long as it is in nobody's way.
    """

    def __init__(self, *, events: int, size: int, budget: Budget, keeps: bool) -> None:
        self.events = events
        self.size = min(size, budget.limit)
        self.published = 0
        self.dropped = 0
        self.waiting: deque[Entry] = deque()
        self.waiting_bytes = 0
        self._kept: deque[Entry] = deque()
        self._kept_bytes = 0
        self._keeps = keeps
        self._gaps: deque[range] = deque(maxlen=_GAPS)
        self._budget = budget

    @property
    def bytes(self) -> int:
        """Bytes of tensors that it holds on to."""
        return self.waiting_bytes + self._kept_bytes

    @property
    def oldest(self) -> int:
        """Number of the oldest event that it holds on to, or of the next one that comes."""
        held = self._kept or self.waiting
        return held[0][0] if held else self.published

    def has_room(self, size: int) -> bool:
        """Whether one more event, with so many bytes, fits."""
        return len(self.waiting) < self.events and self.waiting_bytes + size <= self.size

    def extend(self, drafts: Sequence[Draft]) -> bool:
        """Add drafts without tensors; False, and nothing is done, where that needs a closer look."""
        over = len(self.waiting) + len(self._kept) + len(drafts) - self.events
        if over > len(self._kept):
            return False
        for _ in range(over):
            self._forget()
        end = self.published + len(drafts)
        self.waiting.extend(zip(range(self.published, end), drafts, repeat(0)))
        self.published = end
        return True

    def add(self, draft: Draft, size: int) -> None:
        """Add a draft: what was taken goes first where room is needed, then the oldest that waits."""
        sequence = self.published
        self.published += 1
        if size > self.size:
            self._lose(sequence)
            return
        while self._kept and not (
            len(self.waiting) + len(self._kept) < self.events and self.bytes + size <= self.size
        ):
            self._forget()
        while not self.has_room(size):
            self._drop()
        self.waiting.append((sequence, draft, size))
        if size:
            self.waiting_bytes += size
            self._budget.hold(draft)

    def refuse(self) -> None:
        """Count a draft that comes and is dropped."""
        self._lose(self.published)
        self.published += 1

    def give_way(self) -> bool:
        """Let go of the oldest event; False where there is none."""
        if self._kept:
            self._forget()
        elif self.waiting:
            self._drop()
        else:
            return False
        return True

    def take(self, events: int, size: int) -> deque[Entry]:
        """Take the oldest, no more than `events`, and none once there are `size` bytes."""
        if len(self.waiting) <= events and not self.waiting_bytes:
            taken, self.waiting = self.waiting, deque()
        else:
            taken = deque()
            found = 0
            while self.waiting and len(taken) < events and found < size:
                taken.append(self.waiting.popleft())
                found += taken[-1][2]
            self.waiting_bytes -= found
            if self._keeps:
                self._kept_bytes += found
            else:
                for _, draft, weight in taken:
                    if weight:
                        self._budget.release(draft)
        if self._keeps:
            self._kept.extend(taken)
        return taken

    def rewind(self, after: int) -> int:
        """Let what came after a sequence number wait again. Gives how much of it is lost."""
        while self._kept and self._kept[0][0] <= after:
            self._forget()
        self.waiting.extendleft(reversed(self._kept))
        self.waiting_bytes += self._kept_bytes
        self._kept.clear()
        self._kept_bytes = 0
        first = self.waiting[0][0] if self.waiting else self.published
        missing = range(after + 1, first)
        lost = len(missing)
        gaps: list[range] = [missing]
        for gap in self._gaps:
            before, behind = _cut(gap, stop=missing.start), _cut(gap, start=missing.stop)
            lost -= len(gap) - len(before) - len(behind)
            gaps += (before, behind)
        # Where the gaps are too many to be remembered, no more is lost than was taken.
        lost = max(0, min(lost, self.published - self.dropped - len(self.waiting)))
        self._gaps = deque(filter(len, gaps), maxlen=_GAPS)
        self.dropped += lost
        return lost

    def clear(self) -> None:
        """Let go of everything; what waited is dropped."""
        while self.give_way():
            pass

    def _drop(self) -> None:
        sequence, draft, size = self.waiting.popleft()
        self._lose(sequence)
        if size:
            self.waiting_bytes -= size
            self._budget.release(draft)

    def _forget(self) -> None:
        _, draft, size = self._kept.popleft()
        if size:
            self._kept_bytes -= size
            self._budget.release(draft)

    def _lose(self, sequence: int) -> None:
        self.dropped += 1
        if self._keeps:
            if self._gaps and self._gaps[-1].stop == sequence:
                self._gaps[-1] = range(self._gaps[-1].start, sequence + 1)
            else:
                self._gaps.append(range(sequence, sequence + 1))


def _cut(run: range, *, start: int = 0, stop: int = sys.maxsize) -> range:
    """What of a run is from `start` on, and before `stop`."""
    return range(max(run.start, start), min(run.stop, stop))
