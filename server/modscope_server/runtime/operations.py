"""Carrying changes out at one safe point, all of them or none, and entering them into the ledger.

The training thread copies, changes and compares; digests are computed afterwards, on the caller's
thread, from the copies.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from modscope_server.errors import StaleDigest
from modscope_server.inspection.changes import Change, Plan
from modscope_server.inspection.memento import Memento, digests
from modscope_server.inspection.parameters import find_tensor
from modscope_server.runtime.entries import Entry
from modscope_server.runtime.ledger import Ledger
from modscope_server.runtime.registry import Registered
from modscope_server.runtime.retries import Retries
from modscope_server.runtime.safepoint import Caller, Cancelled, Place, SafePoint

__all__ = ["Operations", "Options"]

_log = logging.getLogger("modscope_server")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a mutating call may ask beyond its own arguments, and how long it waits."""

    who: str = ""
    """Who asks, for the ledger."""
    expected: Mapping[str, str] = field(default_factory=dict)
    """Path -> digest that the tensor must have at the safe point."""
    dry_run: bool = False
    request_id: str = ""
    caller: Caller | None = None
    timeout: float | None = None
    cancelled: Cancelled | None = None
    admits: Callable[[Place | None], bool] | None = None
    """Which places of an iteration of a loop that runs will do; None for any."""


@dataclass(slots=True, eq=False)
class _Outcome:
    """What happened at the safe point."""

    entry: Entry
    memento: Memento
    notes: list[str]
    remarks: list[Callable[[Mapping[str, str]], tuple[str, ...]]]
    after: dict[str, torch.Tensor] = field(default_factory=dict)


class Operations:
    """Carries changes out, one call at a time."""

    def __init__(self, safepoint: SafePoint, ledger: Ledger) -> None:
        self._safepoint = safepoint
        self._ledger = ledger
        self._retries = Retries()

    def carry_out(
        self,
        kind: str,
        registered: Registered,
        plans: Sequence[Plan],
        options: Options,
        undoes: Entry | None = None,
    ) -> Entry:
        """Carry the plans out in their order, each planned when those before it are done.

        Where one is refused or fails everything is put back. A request id that is known changes nothing
        and gives the operation of the first call. Raises StaleDigest, what the plans raise, and what
        SafePoint.run raises.
        """
        with self._retries.once(options.request_id, kind, registered.name, options) as attempt:
            if attempt.first is not None:
                return attempt.first

            def act() -> _Outcome:
                _check_expected(registered, options.expected)
                entry = Entry(kind, registered.name, options.who, self._safepoint.step_count)
                entry.request_id, entry.undoes = options.request_id, undoes
                outcome = self._act(entry, plans, dry_run=options.dry_run)
                if entry.outcome == "applied":
                    attempt.first = entry
                return outcome

            return self._run(act, plans, options)

    def earlier(self, request_id: str, kind: str, model: str) -> Entry | None:
        """The operation that a retried call would give, where it is known without looking any further."""
        return self._retries.earlier(request_id, kind, model)

    def _run(self, act: Callable[[], _Outcome], plans: Sequence[Plan], options: Options) -> Entry:
        # A dry run of several changes makes all but the last, since each is planned upon those before.
        writes = not options.dry_run or len(plans) > 1
        answer = self._safepoint.run(
            act,
            kind="write" if writes else "read",
            caller=options.caller,
            timeout=options.timeout,
            cancelled=options.cancelled,
            admits=options.admits,
        )
        done = answer.value
        before = done.memento.digests()
        remarks = [note for remark in done.remarks for note in remark(before)]
        done.entry.complete((*answer.notes, *done.notes, *remarks), before, digests(done.after))
        _tell(done.entry)
        return done.entry

    def _act(self, entry: Entry, plans: Sequence[Plan], *, dry_run: bool) -> _Outcome:
        """What runs at the safe point."""
        outcome = _Outcome(entry, Memento(), [], [])
        known: dict[int, torch.Tensor | None] = {}
        change: Change | None = None
        try:
            for position, plan in enumerate(plans):
                change = None
                change = plan()
                outcome.memento.absorb(change.memento)
                outcome.remarks.append(change.remark)
                known.update(change.memento.ids(change.known))
                entry.paths = tuple(dict.fromkeys((*entry.paths, *change.paths)))
                if not dry_run or position < len(plans) - 1:
                    outcome.notes.extend(change.apply())
            if dry_run:
                if len(plans) > 1:
                    outcome.memento.roll_back()
                entry.outcome = "dry_run"
                self._ledger.name(entry)
            else:
                outcome.memento.settle()
                outcome.after = outcome.memento.values_now(known)
                self._enter(outcome)
        except BaseException as error:
            outcome.memento.roll_back()
            if change is not None and not dry_run:
                self._fail(entry, error)
            raise
        return outcome

    def _enter(self, outcome: _Outcome) -> None:
        entry, memento = outcome.entry, outcome.memento
        entry.memento, entry.keys = memento, memento.keys
        undone = entry.undoes
        if undone is not None and undone.memento is not None and not undone.memento.repeatable:
            entry.memento, entry.lost = None, f"a {undone.kind} cannot be done again"
        outcome.notes.extend(self._ledger.add(entry))

    def _fail(self, entry: Entry, error: BaseException) -> None:
        """Remember a change that raised while it was made."""
        entry.outcome = "failed"
        entry.complete((f"{type(error).__name__}: {error}",), {}, {})
        self._ledger.add(entry)
        _tell(entry)


def _check_expected(registered: Registered, expected: Mapping[str, str]) -> None:
    for path, wanted in expected.items():
        found = find_tensor(registered.root, path)
        got = digests({path: found.tensor}).get(path, "")
        if got != wanted:
            raise StaleDigest(
                f"{found.path} is {got or 'without a digest'}, not {wanted}",
                hint="read it again, then decide anew",
                field="options.expected",
                path=found.path,
                expected=wanted,
                got=got,
            )


def _tell(entry: Entry) -> None:
    _log.info(
        "%s: %s of %s (%d tensors) at step %d by %s, %s",
        entry.id, entry.kind, entry.model, len(entry.paths), entry.step, entry.who, entry.outcome,
    )  # fmt: skip
