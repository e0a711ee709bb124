"""Run control: holding the training thread at step boundaries, by request or by a break.

A pause belongs to a lease, so that a run is never held by somebody who is gone. Nothing here is asked
by the loop while there is neither a pause nor a break.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial

from torch.optim.optimizer import Optimizer

from modscope_server.errors import BadRequest, Closed, UnknownLease
from modscope_server.runtime.boundaries import Place
from modscope_server.runtime.breaks.table import Break, BreakTable
from modscope_server.runtime.leases import Lease, Leases
from modscope_server.runtime.run_status import BreakState, PauseState, RunState, RunStatus
from modscope_server.runtime.safepoint import Cancelled, SafePoint

__all__ = ["RunControl"]

_LOG = logging.getLogger("modscope_server")
_PAUSE_SECONDS = 30.0
_BREAK_SECONDS = 600.0
_MOST_STEPS = 1 << 53
_LOOK = 0.25
"""Seconds after which one that waits for a pause looks whether the training thread still lives."""


class _Grip:
    """What a lease holds a pause by; goes from a pause to the one that follows its steps."""

    def __init__(self) -> None:
        self.lease_id = ""
        self.own = False
        """Whether the training thread itself has asked: it could not renew the lease while it is held."""


@dataclass(slots=True, eq=False)
class _Pause:
    """A wish to hold the run; with `since` it is held."""

    grip: _Grip
    reason: str
    at: int = 0
    """The step from which on it is held."""
    break_id: str = ""
    since: float | None = None
    late: int | None = None
    """The step at which it would have been held, had that been a point for writes."""


class RunControl:
    """The run of one server: running, about to pause, paused, or stepping.

    Threads of the server ask, the training thread obeys at its boundaries.
    """

    def __init__(self, safepoint: SafePoint, breaks: BreakTable, leases: Leases) -> None:
        self._safepoint = safepoint
        self._breaks = breaks
        self._leases = leases
        self._changed = threading.Condition(threading.Lock())
        self._pause: _Pause | None = None
        self._last_resume = ""
        self._closed = False
        # What the training thread has seen of its boundaries.
        self._seen = -1
        self._acted = -1

    # On the server's threads.

    def status(self, notes: Collection[str] = ()) -> RunStatus:
        """What the run is doing; `notes` are told besides."""
        pause = self._pause_state()
        return RunStatus(
            step=self._safepoint.step_count,
            steps_per_second=self._safepoint.steps_per_second,
            state=self._state(pause),
            doing=self._safepoint.describe(),
            pause=pause,
            breaks=self.breaks(),
            waiting=self._safepoint.waiting,
            skipped_steps=self._safepoint.skipped_steps,
            notes=(*self._safepoint.notes, *notes, *self._notes(pause)),
            last_resume=self._last_resume,
        )

    def pause(self, seconds: float, who: str, *, own: bool = False) -> None:
        """Hold the run at its next boundary; one that is held, or will be, gets this lease.

        `seconds` is that of the lease; 0 means 30. `own`: the training thread itself asks. Raises
        BadRequest, Closed.
        """
        with self._changed:
            grip = self._take_lease(seconds or _PAUSE_SECONDS, who, own=own)
            pause = self._pause
            if pause is None:
                self._pause = _Pause(grip, "pause")
            else:
                self._leases.forget(pause.grip.lease_id)
                pause.grip = grip
                if pause.at > self._safepoint.step_count:
                    pause.at, pause.reason = 0, "pause"
            self._arm()

    def step(self, steps: int, seconds: float, who: str, *, own: bool = False) -> int:
        """Let the run go on for some iterations, 0 means one, and hold it again.

        Returns the step from which they are counted, which a run that is not held may have left already.
        `seconds` is that of the lease; 0 means the one of the present pause. Raises BadRequest, Closed.
        """
        if not 0 <= steps <= _MOST_STEPS:
            raise BadRequest(f"{steps} steps", hint="give a number of iterations, at least 1", field="steps")
        with self._changed:
            pause = self._pause
            if pause is None or seconds:
                grip = self._take_lease(seconds or _PAUSE_SECONDS, who, own=own)
                if pause is not None:
                    self._leases.forget(pause.grip.lease_id)
            else:
                grip = pause.grip
                self._renew(grip)
            # A new wish, so that a thread that is held for the old one sees that this is over.
            begun = self._safepoint.step_count
            self._pause = _Pause(grip, "step", at=begun + (steps or 1))
            self._arm()
        self._safepoint.wake()
        return begun

    def resume(self, who: str) -> None:
        """End a pause, or the wish for one. Nothing happens where there is none."""
        with self._changed:
            pause = self._pause
            if pause is not None:
                self._leases.forget(pause.grip.lease_id)
        self._end(pause, f"resumed by {who}")

    def add_break(self, expression: str, seconds: float, who: str) -> BreakState:
        """Pause the run when a condition holds. Where that looks at hooks, call it at a safe point.

        `seconds` is that of the lease; 0 means 600. Raises BadExpression, BadRequest, LimitExceeded, Closed.
        """
        seconds = seconds or _BREAK_SECONDS
        Leases.check(seconds)
        self._check_open()
        added = self._breaks.add(expression, seconds, who)
        with self._changed:
            self._arm()
        return self._break_state(added)

    def breaks(self) -> tuple[BreakState, ...]:
        """Those that are set, in the order of their setting."""
        return tuple(map(self._break_state, self._breaks))

    def clear(self, ids: Collection[str]) -> list[BreakState]:
        """Take breaks away, all where none is named; a pause of theirs goes on. Raises UnknownBreak."""
        gone = self._breaks.clear(ids)
        with self._changed:
            self._arm()
        return list(map(self._break_state, gone))

    def wait(self, seconds: float, cancelled: Cancelled) -> bool:
        """Wait until the run is held or no training thread is alive; False where neither came in time.

        Raises Closed where the server closes.
        """
        deadline = time.monotonic() + seconds
        with self._changed:
            while not self._settled():
                self._check_open()
                left = deadline - time.monotonic()
                if left <= 0 or cancelled.is_set():
                    return False
                self._changed.wait(min(left, _LOOK))
        return True

    def wake(self) -> None:
        """Have those that wait look again, such as one that is cancelled."""
        with self._changed:
            self._changed.notify_all()

    def close(self) -> None:
        """Let the run go, for good. Idempotent."""
        with self._changed:
            self._closed = True
        self._end(self._pause, "the server closed")
        self.clear(())
        self.wake()

    # On the training thread.

    def updated(self, optimizer: Optimizer) -> None:
        """An optimizer has stepped, and its gradients are still there."""
        self._breaks.updated(self._safepoint.step_count, optimizer)

    def boundary(self, step: int, place: Place, write_point: bool) -> None:
        """Iteration `step` is complete. It is looked at once: where nothing of it is known to follow."""
        if step == self._acted:
            return
        self._acted = -1
        if place != "forward" and not self._safepoint.ends_iteration(place):
            return
        # Only forwards that are followed are known to await no backward, so that this is a point for writes.
        self._safepoint.pending.attend()
        if step != self._seen or place == "mark":
            self._new_iteration(step, place)
            if self._pause is None or self._pause.late is None:
                self._look_at_breaks(step, place)
        pause = self._pause
        if pause is None or step < pause.at:
            return
        if write_point or (pause.late is not None and step != pause.late):
            self._hold(pause)
        elif pause.late is None:
            # A forward still waits for its backward, and every request shall be served: try a little later.
            pause.late = step

    def _new_iteration(self, step: int, place: Place) -> None:
        pause, seen = self._pause, self._seen
        self._seen = step
        if pause is None:
            return
        if pause.at and step < seen:
            # The count went back, as to a snapshot: so does the step to which the run goes on. What is
            # told as late as at a forward has been counted before.
            pause.at = max(1, pause.at + step - seen - (place != "forward"))
        if step < pause.at:
            self._renew(pause.grip)

    def _look_at_breaks(self, step: int, place: Place) -> None:
        hit = self._breaks.look(step, place) if len(self._breaks) else None
        if hit is None:
            return
        with self._changed:
            if self._closed:
                return
            pause = self._pause
            grip = None if pause is None else pause.grip
            if grip is None or not self._renew(grip, hit.lease_seconds):
                grip = self._take_lease(hit.lease_seconds, hit.who)
            self._pause = _Pause(grip, hit.expression, break_id=hit.id)

    def _hold(self, pause: _Pause) -> None:
        with self._changed:
            if self._pause is not pause:
                return
            pause.since = time.time()
            self._renew(pause.grip)
            self._changed.notify_all()
        _LOG.info("the run is paused at step %d: %s", self._safepoint.step_count, pause.reason)
        why = "the server closed"
        try:
            self._safepoint.hold(partial(self._released, pause))
            if not threading.main_thread().is_alive():
                why = "the interpreter exits"
        except BaseException as error:
            why = f"{type(error).__name__} was raised into the loop"
            raise
        finally:
            pause.since = None
            self._seen = self._acted = self._safepoint.step_count
            if self._pause is pause:
                self._leases.forget(pause.grip.lease_id)
                self._end(pause, why, held=True)

    def _released(self, pause: _Pause) -> bool:
        """Whether the thread may go on; a lease is looked at here, too, where its thread could not start."""
        self._leases.expire()
        return self._pause is not pause or not threading.main_thread().is_alive()

    # On any thread.

    def _end(self, pause: _Pause | None, why: str, *, held: bool = False) -> None:
        """This wish is over, where it is still the one."""
        with self._changed:
            if pause is None or self._pause is not pause:
                return
            self._pause = None
            if not held and pause.since is None:
                why = f"it was not held yet when the wish for it ended: {why}"
            self._last_resume = why
            self._arm()
            self._changed.notify_all()
        _LOG.info("the run goes on from step %d: %s", self._safepoint.step_count, why)
        self._safepoint.wake()

    def _lost(self, grip: _Grip, why: str) -> None:
        """A lease has ended."""
        pause = self._pause
        if pause is not None and pause.grip is grip:
            self._end(pause, why)

    def _take_lease(self, seconds: float, who: str, *, own: bool = False) -> _Grip:
        self._check_open()
        grip = _Grip()
        grip.own = own
        lost: Callable[[str], None] = partial(self._lost, grip)
        lease = self._leases.take(seconds, holds="pause", who=who, on_end=lost, renewable=not own)
        grip.lease_id = lease.id
        return grip

    def _renew(self, grip: _Grip, seconds: float = 0.0) -> bool:
        """Let its lease hold from now on, for other seconds where they are more; False where it has ended."""
        with contextlib.suppress(UnknownLease):
            lease = self._leases.get(grip.lease_id)
            self._leases.renew(lease.id, max(lease.seconds, seconds))
            return True
        return False

    def _arm(self) -> None:
        """Have the loop tell of its boundaries while that is of use, and only then."""
        wanted = self if self._pause is not None or len(self._breaks) else None
        if wanted is not None:
            self._safepoint.pending.attend()
        if self._safepoint.control is not wanted:
            self._seen = -1 if wanted is None else self._seen
            self._safepoint.control = wanted

    def _check_open(self) -> None:
        if self._closed:
            raise Closed("the server is closing", hint="connect to a running server: `modscope ps`")

    def _settled(self) -> bool:
        pause = self._pause
        return (pause is not None and pause.since is not None) or not self._safepoint.activity.alive

    def _state(self, pause: PauseState | None) -> RunState:
        if pause is not None and pause.since is not None:
            return "paused"
        if not self._safepoint.activity.alive:
            return "no_training"
        return "idle" if self._safepoint.idle else "running"

    def _pause_state(self) -> PauseState | None:
        self._leases.expire()
        with self._changed:
            pause = self._pause
            if pause is None:
                return None
            with contextlib.suppress(UnknownLease):
                lease: Lease = self._leases.get(pause.grip.lease_id)
                return PauseState(lease, pause.reason, pause.break_id, pause.since)
        return None

    def _notes(self, pause: PauseState | None) -> list[str]:
        if pause is None:
            return []
        notes = []
        activity = self._safepoint.activity
        if activity.ident is not None and not activity.alive:
            notes.append("the thread that trained has ended; the pause holds the next one that trains")
        mine = self._pause
        if mine is not None and mine.grip.own:
            notes.append(
                "the training thread itself asked for the pause: once it is held another client can resume "
                "it, and its lease cannot be renewed"
            )
        return notes

    def _break_state(self, one: Break) -> BreakState:
        notes = self._safepoint.peek(lambda: self._breaks.notes(one)).value
        return BreakState(one.id, one.expression, one.hits, notes, one.lease_seconds)
