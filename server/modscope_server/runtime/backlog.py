"""What one subscriber has yet to take, and, where it may resume, what it has taken last."""

from __future__ import annotations

import sys
from collections import deque

from modscope_server.runtime.budget import Budget
from modscope_server.runtime.runs import Block, Run

__all__ = ["Backlog"]

_GAPS = 4096
"""Runs of dropped events that are remembered."""


class _Store:
    """Runs in order, and how much they hold."""

    def __init__(self, budget: Budget) -> None:
        self.runs: deque[Run] = deque()
        self.length = 0
        self.bytes = 0
        self._budget = budget

    def append(self, run: Run) -> None:
        """Take a run in, behind the others."""
        self.runs.append(run)
        self.length += run.length
        if run.block.size:
            self.bytes += run.block.size
            self._budget.hold(run.block.drafts)

    def cut(self, most: int) -> Run:
        """Take the oldest run out, or its first so many."""
        run = self.runs.popleft()
        if run.length > most:
            run, rest = run.split(most)
            self.runs.appendleft(rest)
        self.length -= run.length
        if run.block.size:
            self.bytes -= run.block.size
            self._budget.release(run.block.drafts)
        return run


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
        self._waiting = _Store(budget)
        self._kept = _Store(budget)
        self._keeps = keeps
        self._gaps: deque[range] = deque(maxlen=_GAPS)

    @property
    def waiting(self) -> int:
        """Events that wait."""
        return self._waiting.length

    @property
    def waiting_bytes(self) -> int:
        """Bytes of their tensors."""
        return self._waiting.bytes

    @property
    def bytes(self) -> int:
        """Bytes of tensors that it holds on to."""
        return self._waiting.bytes + self._kept.bytes

    @property
    def oldest(self) -> int:
        """Number of the oldest event that it holds on to, or of the next one that comes."""
        held = self._kept.runs or self._waiting.runs
        return held[0].first if held else self.published

    def room(self, size: int) -> int:
        """How many more events fit that have so many bytes together."""
        if self._waiting.bytes + size > self.size:
            return 0
        return self.events - self._waiting.length

    def add(self, block: Block) -> None:
        """Add all of a block: what was taken goes first where room is needed, then the oldest that waits."""
        length = len(block.drafts)
        if block.size > self.size:
            self.refuse(length)
            return
        excess = max(0, length - self.events)
        if excess:
            self._drop(self.waiting)
            self.refuse(excess)
            length -= excess
        kept, waiting = self._kept, self._waiting
        while kept.runs and (
            kept.length + waiting.length + length > self.events or self.bytes + block.size > self.size
        ):
            kept.cut(max(1, kept.length + waiting.length + length - self.events))
        while waiting.length + length > self.events or waiting.bytes + block.size > self.size:
            self._drop(max(1, waiting.length + length - self.events))
        waiting.append(Run(self.published, block, excess, excess + length))
        self.published += length

    def add_some(self, block: Block) -> int:
        """Add what fits. Gives how many do not, which are not counted."""
        length = min(len(block.drafts), self.room(block.size))
        if length <= 0:
            return len(block.drafts)
        self.add(block if length == len(block.drafts) else Block(block.drafts[:length]))
        return len(block.drafts) - length

    def refuse(self, count: int) -> None:
        """Count events that come and are dropped."""
        if count:
            self._lose(range(self.published, self.published + count))
            self.published += count

    def give_way(self) -> None:
        """Let go of the oldest event, where there is one."""
        if self._kept.runs:
            self._kept.cut(1)
        elif self._waiting.runs:
            self._drop(1)

    def take(self, events: int, size: int) -> deque[Run]:
        """Take the oldest, no more than `events`, and none once there are `size` bytes."""
        taken: deque[Run] = deque()
        left, found = events, 0
        while self._waiting.runs and left > 0 and found < size:
            run = self._waiting.cut(left)
            left -= run.length
            found += run.block.size
            taken.append(run)
            if self._keeps:
                self._kept.append(run)
        return taken

    def rewind(self, after: int) -> int:
        """Let what came after a sequence number wait again. Gives how much of it is lost."""
        kept, waiting = self._kept, self._waiting
        while kept.runs and kept.runs[0].first <= after:
            kept.cut(after + 1 - kept.runs[0].first)
        again = _Store(self._waiting._budget)
        for store in (kept, waiting):
            while store.runs:
                again.append(store.cut(store.length))
        self._waiting = again
        return self._settle(range(after + 1, self.oldest))

    def clear(self) -> None:
        """Let go of everything; what waited is dropped."""
        while self._kept.runs:
            self._kept.cut(self._kept.length)
        self._drop(self._waiting.length)

    def _settle(self, missing: range) -> int:
        """Count as dropped what is missing, and has not been counted. Gives how much."""
        lost = len(missing)
        gaps: list[range] = [missing]
        for gap in self._gaps:
            before, behind = _cut(gap, stop=missing.start), _cut(gap, start=missing.stop)
            lost -= len(gap) - len(before) - len(behind)
            gaps += (before, behind)
        self._gaps = deque(filter(len, gaps), maxlen=_GAPS)
        # Where the gaps are too many to be remembered, no more is lost than was taken.
        lost = max(0, min(lost, self.published - self.dropped - self.waiting))
        self.dropped += lost
        return lost

    def _drop(self, count: int) -> None:
        """Drop so many of the oldest that wait."""
        while count > 0:
            run = self._waiting.cut(count)
            count -= run.length
            self._lose(range(run.first, run.end))

    def _lose(self, numbers: range) -> None:
        self.dropped += len(numbers)
        if self._keeps:
            if self._gaps and self._gaps[-1].stop == numbers.start:
                numbers = range(self._gaps.pop().start, numbers.stop)
            self._gaps.append(numbers)


def _cut(run: range, *, start: int = 0, stop: int = sys.maxsize) -> range:
    """What of a run is from `start` on, and before `stop`."""
    return range(max(run.start, start), min(run.stop, stop))
