"""Run control: holding the training thread at step boundaries, by request or by a break.

A pause belongs to a lease, so that a run is never held by somebody who is gone. Nothing here is asked
by the loop while there is neither a pause nor a break.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection
from functools import partial

from torch.optim.optimizer import Optimizer

from modscope_server.errors import BadRequest
from modscope_server.runtime.boundaries import Place
from modscope_server.runtime.breaks.table import Break, BreakTable
from modscope_server.runtime.leases import Leases
from modscope_server.runtime.pauses import Pause, Pauses
from modscope_server.runtime.run_status import BreakState, PauseState, RunState, RunStatus
from modscope_server.runtime.safepoint import Cancelled, SafePoint

__all__ = ["RunControl"]

_LOG = logging.getLogger("modscope_server")
_BREAK_SECONDS = 600.0
_MOST_STEPS = 1 << 53


class RunControl:
    """The run of one server: running, about to pause, paused, or stepping.

    Threads of the server ask, the training thread obeys at its boundaries.
    """

    def __init__(self, safepoint: SafePoint, breaks: BreakTable, leases: Leases) -> None:
        self._safepoint = safepoint
        self._breaks = breaks
        self._pauses = Pauses(leases, self._arm)
        # What the training thread has seen of its boundaries, by their steps.
        self._seen = -1
        self._acted = -1

    # On the server's threads.

    def status(self, notes: Collection[str] = ()) -> RunStatus:
        """What the run is doing; `notes` are told besides."""
        pause = self._pauses.state()
        return RunStatus(
            step=self._safepoint.step_count,
            steps_per_second=self._safepoint.steps_per_second,
            state=self._state(pause),
            doing=self._safepoint.describe(),
            pause=pause,
            breaks=self.breaks(),
            waiting=self._safepoint.waiting,
            skipped_steps=self._safepoint.skipped_steps,
            notes=(*self._safepoint.notes, *notes, *self._notes()),
            last_resume=self._pauses.last_end,
        )

    def pause(self, seconds: float, who: str, *, own: bool = False) -> None:
        """Hold the run at its next boundary; one that is held, or will be, gets this lease.

        `seconds` is that of the lease; 0 means 30. `own`: the training thread itself asks. Raises
        BadRequest, Closed.
        """
        self._pauses.ask(seconds, who, self._safepoint.step_count, own=own)

    def step(self, steps: int, seconds: float, who: str, *, own: bool = False) -> int:
        """Let the run go on for some iterations, 0 means one, and hold it again.

        Returns the step from which they are counted, which a run that is not held may have left already.
        `seconds` is that of the lease; 0 means the one of the present pause. Raises BadRequest, Closed.
        """
        if not 0 <= steps <= _MOST_STEPS:
            raise BadRequest(f"{steps} steps", hint="give a number of iterations, at least 1", field="steps")
        begun = 0

        def at() -> int:
            nonlocal begun
            begun = self._safepoint.step_count
            return begun + (steps or 1)

        self._pauses.ask_at(at, seconds, who, own=own)
        return begun

    def resume(self, who: str) -> None:
        """End a pause, or the wish for one. Nothing happens where there is none."""
        self._pauses.end(self._pauses.now, f"resumed by {who}")

    def add_break(self, expression: str, seconds: float, who: str) -> BreakState:
        """Pause the run when a condition holds. Where that looks at hooks, call it at a safe point.

        `seconds` is that of the lease; 0 means 600. Raises BadExpression, BadRequest, LimitExceeded, Closed.
        """
        seconds = seconds or _BREAK_SECONDS
        Leases.check(seconds)
        self._pauses.check_open()
        added = self._breaks.add(expression, seconds, who)
        self._pauses.tell()
        return self._break_state(added)

    def breaks(self) -> tuple[BreakState, ...]:
        """Those that are set, in the order of their setting."""
        return tuple(map(self._break_state, self._breaks))

    def clear(self, ids: Collection[str]) -> list[BreakState]:
        """Take breaks away, all where none is named; a pause of theirs goes on. Raises UnknownBreak."""
        gone = self._breaks.clear(ids)
        self._pauses.tell()
        return list(map(self._break_state, gone))

    def wait(self, seconds: float, cancelled: Cancelled) -> None:
        """Wait until the run is held or no training thread is alive, at most so long. Raises Closed."""
        self._pauses.wait(lambda: self._pauses.held or not self._safepoint.activity.alive, seconds, cancelled)

    def wake(self) -> None:
        """Have those that wait look again, such as one that is cancelled."""
        self._pauses.wake()

    def close(self) -> None:
        """Let the run go, for good. Idempotent."""
        self._pauses.close("the server closed")
        self.clear(())

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
        # Only of forwards that are followed is it known at once that none awaits its backward.
        self._safepoint.pending.attend()
        if step != self._seen or place == "mark":
            self._new_iteration(step, place)
            self._look_at_breaks(step, place)
        pause = self._pauses.now
        if pause is None or step < pause.at:
            return
        if write_point or (pause.late is not None and step != pause.late):
            self._hold(pause)
        elif pause.late is None:
            # A forward still waits for its backward, and every request shall be served: try a little later.
            pause.late = step

    def _new_iteration(self, step: int, place: Place) -> None:
        pause, seen = self._pauses.now, self._seen
        self._seen = step
        if pause is None:
            return
        if pause.at and step < seen:
            # The count went back, as to a snapshot: so does the step to which the run goes on. What is
            # told as late as at a forward has been counted before.
            pause.at = max(1, pause.at + step - seen - (place != "forward"))
        if step < pause.at:
            self._pauses.renew(pause)

    def _look_at_breaks(self, step: int, place: Place) -> None:
        pause = self._pauses.now
        if not len(self._breaks) or (pause is not None and pause.late is not None):
            return
        hit = self._breaks.look(step, place)
        if hit is not None:
            self._pauses.hit(hit.expression, hit.id, hit.lease_seconds, hit.who)

    def _hold(self, pause: Pause) -> None:
        why = "the server closed"
        try:
            if not self._pauses.hold(pause):
                return
            _LOG.info("the run is paused at step %d: %s", self._safepoint.step_count, pause.reason)
            self._safepoint.hold(partial(self._released, pause))
            if not threading.main_thread().is_alive():
                why = "the interpreter exits"
        except BaseException as error:
            why = f"{type(error).__name__} was raised into the loop"
            raise
        finally:
            if pause.since is not None:
                self._seen = self._acted = self._safepoint.step_count
            self._pauses.end(pause, why)

    def _released(self, pause: Pause) -> bool:
        """Whether the thread may go on; it may, too, where the interpreter waits for it to exit."""
        return self._pauses.goes_on(pause) or not threading.main_thread().is_alive()

    # On any thread.

    def _arm(self) -> None:
        """Have the loop tell of its boundaries while that is of use, and only then."""
        wanted = self if self._pauses.now is not None or len(self._breaks) else None
        if wanted is not None:
            self._safepoint.pending.attend()
        if self._safepoint.control is not wanted:
            self._seen = -1 if wanted is None else self._seen
            self._safepoint.control = wanted
        self._safepoint.wake()

    def _state(self, pause: PauseState | None) -> RunState:
        if pause is not None and pause.since is not None:
            return "paused"
        if not self._safepoint.activity.alive:
            return "no_training"
        return "idle" if self._safepoint.idle else "running"

    def _notes(self) -> list[str]:
        pause, activity = self._pauses.now, self._safepoint.activity
        notes = []
        if pause is not None and activity.ident is not None and not activity.alive:
            notes.append("the thread that trained has ended; the pause holds the next one that trains")
        if pause is not None and pause.grip.own:
            notes.append(
                "the training thread itself asked for the pause: once it is held another client can resume "
                "it, and its lease cannot be renewed"
            )
        return notes

    def _break_state(self, one: Break) -> BreakState:
        notes = self._safepoint.peek(lambda: self._breaks.notes(one)).value
        return BreakState(one.id, one.expression, one.hits, notes, one.lease_seconds)
