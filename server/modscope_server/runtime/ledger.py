"""The ledger: every mutating call in order, and which of them can still be undone.

For each thing that operations touch there is a stack of those in effect. An operation can be undone
while it is on top of all its stacks; undoing takes it off them, and undoing that puts it back.
"""

from __future__ import annotations

import itertools
import threading
from collections import Counter, OrderedDict
from collections.abc import Hashable
from typing import NamedTuple

from modscope_server.errors import BadRequest, UnknownOperation
from modscope_server.inspection.commands import named
from modscope_server.runtime.entries import Entry

__all__ = ["Ledger", "Page"]


class Page(NamedTuple):
    """Some operations on a model, newest last."""

    entries: list[Entry]
    following: str
    """Token of the next page; empty on the last."""
    forgotten: int
    """Operations on the model that the ledger has let go."""


class Ledger:
    """Remembers operations, within bounds. All methods may be called from any thread.

    Args:
        operations: most entries; the oldest are forgotten.
        undo_bytes: most bytes of copies; those of the oldest are let go, and their entries say so.
    """

    def __init__(self, operations: int, undo_bytes: int) -> None:
        self.undo_bytes = undo_bytes
        self._operations = operations
        self._entries: OrderedDict[str, Entry] = OrderedDict()
        self._in_effect: dict[Hashable, list[Entry]] = {}
        self._forgotten: Counter[str] = Counter()
        self._numbers = itertools.count(1)
        self._bytes = 0
        self._mutex = threading.RLock()

    def name(self, entry: Entry) -> None:
        """Give an operation its number and id."""
        entry.number = next(self._numbers)
        entry.id = f"op-{entry.number}"

    def add(self, entry: Entry) -> tuple[str, ...]:
        """Enter an operation, at the safe point at which it took effect; notes of what was let go for it."""
        with self._mutex:
            self.name(entry)
            self._entries[entry.id] = entry
            if entry.outcome == "applied":
                self._bring_into_effect(entry)
            while len(self._entries) > self._operations:
                self._forget()
            return self._let_go(entry)

    def get(self, model: str, id: str) -> Entry:
        """The operation on a model of that id. Raises UnknownOperation."""
        with self._mutex:
            entry = self._entries.get(id)
            if entry is not None and entry.model == model:
                return entry
            forgotten = self._forgotten[model]
        raise UnknownOperation(
            f"there is no operation {id!r} on {model!r}"
            + (f"; {forgotten} older ones are forgotten (limits.operations)" if forgotten else ""),
            hint="list them: `modscope ops`",
            field="id",
        )

    def page(self, model: str, size: int, token: str = "") -> Page:
        """Operations on a model in their order, at most `size` of them. Raises BadRequest for a bad token."""
        if token and not (token.isascii() and token.isdecimal() and len(token) < 20):
            raise BadRequest(
                f"{token!r} is no page token", hint="give next_page_token as it came", field="page_token"
            )
        after = int(token) if token else 0
        with self._mutex:
            rest = [one for one in self._entries.values() if one.number > after and one.model == model]
            following = str(rest[size - 1].number) if len(rest) > size else ""
            return Page(rest[:size], following, self._forgotten[model])

    def not_undoable(self, entry: Entry) -> tuple[str, str]:
        """Why an operation cannot be undone, and what to do instead; both empty where it can."""
        with self._mutex:
            if entry.outcome != "applied":
                return "it changed nothing", "there is nothing to undo"
            if entry.undone_by is not None:
                by = entry.undone_by.id
                return f"{by} has undone it already", f"to have it back: modscope undo {by}"
            later = self._overtaking(entry)
            if later is not None:
                return (
                    f"{later.id} ({later.kind}) has changed the same since",
                    f"undo that first: modscope undo {later.id}",
                )
            return entry.lost, "write the values that you want, or restore a snapshot" if entry.lost else ""

    def _bring_into_effect(self, entry: Entry) -> None:
        if entry.undoes is None:
            self._push(entry)
            return
        # Undoing an undo brings back what that had undone, and so on down to the first operation.
        one, by, undone = entry.undoes, entry, True
        while one.undoes is not None:
            one.undone_by = by if undone else None
            one, by, undone = one.undoes, one, not undone
        one.undone_by = by if undone else None
        (self._take_off if undone else self._push)(one)
        entry.beneath = {key: self._top(key) for key in entry.keys}

    def _push(self, entry: Entry) -> None:
        for key in entry.keys:
            self._in_effect.setdefault(key, []).append(entry)

    def _take_off(self, entry: Entry) -> None:
        for key in entry.keys:
            stack = self._in_effect.get(key, [])
            if entry in stack:
                stack.remove(entry)
            if not stack:
                self._in_effect.pop(key, None)

    def _top(self, key: Hashable) -> Entry | None:
        stack = self._in_effect.get(key)
        return stack[-1] if stack else None

    def _overtaking(self, entry: Entry) -> Entry | None:
        """The operation that has changed something of it since, and is in effect."""
        for key in entry.keys:
            top, expected = self._top(key), entry if entry.undoes is None else entry.beneath.get(key)
            if top is expected:
                continue
            if expected is not None and expected.undone_by is not None:
                return expected.undone_by
            if top is not None:
                return top
        return None

    def _forget(self) -> None:
        _, oldest = self._entries.popitem(last=False)
        self._forgotten[oldest.model] += 1
        self._take_off(oldest)
        self._drop(oldest, "it is forgotten")

    def _let_go(self, newest: Entry) -> tuple[str, ...]:
        """Let copies go until the rest is within the bound; gives notes of that."""
        size = newest.memento.nbytes if newest.memento else 0
        self._bytes += size
        why = f"its copies were let go: limits.undo_bytes keeps {self.undo_bytes:,} bytes"
        if size > self.undo_bytes:
            self._drop(
                newest, f"it needs {size:,} bytes of copies, and limits.undo_bytes keeps {self.undo_bytes:,}"
            )
            return (f"cannot be undone: {newest.lost}",)
        if self._bytes <= self.undo_bytes:
            return ()
        gone = []
        # The oldest go first, and before them what is undone: whatever has undone it can be undone itself.
        for entry in sorted(self._entries.values(), key=lambda one: one.undone_by is None):
            if self._bytes <= self.undo_bytes:
                break
            if entry.memento is not None and entry.memento.nbytes and entry is not newest:
                self._drop(entry, why)
                gone += [entry.id] if entry.undone_by is None else []
        if not gone:
            return ()
        return (f"cannot be undone any more, for limits.undo_bytes: {named(gone)}",)

    def _drop(self, entry: Entry, why: str) -> None:
        if entry.memento is not None:
            self._bytes -= entry.memento.nbytes
            entry.memento = None
        entry.lost = entry.lost or why
