"""Whose turn it is: the training thread's, or a request's. One of the two touches the models at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from modscope_server.errors import Closed
from modscope_server.runtime.activity import Activity
from modscope_server.runtime.modes import neutral_modes
from modscope_server.runtime.queue import Kind, Place, Request, RequestQueue

__all__ = ["Answer", "Turns"]

T = TypeVar("T")

_TICK = 0.02
_LOOK_AGAIN = 0.1
_SETTLES = 5.0


@dataclass(frozen=True, slots=True)
class Answer(Generic[T]):
    """What a request gave, and the step at which it holds."""

    value: T
    step: int
    notes: tuple[str, ...] = ()


class Turns:
    """Lets requests run where the training thread is, or beside it while it stands.

    Args:
        activity: of the training thread; its `alert` is kept up to date here.
        step_count: completed training iterations.
        read_share: share of a running loop's time that reads may take; later ones wait.
    """

    def __init__(self, activity: Activity, step_count: Callable[[], int], read_share: float) -> None:
        self.queue = RequestQueue(self.refresh)
        self.server: int | None = None
        """The thread that serves a request now, whose own forwards and steps are no training."""
        self.place: Place | None = None
        """Where in its iteration the training thread serves requests; None elsewhere, and beside it."""
        self.closed = False
        self.watched = False
        """Whether somebody else wants to hear of every step boundary."""
        self._activity = activity
        self._step_count = step_count
        self._read_share = read_share
        self._reads_resume = 0.0
        self._busy = False
        self._running = threading.Lock()
        self._state = threading.Lock()
        self._woken = threading.Event()

    def refresh(self) -> None:
        """Set the training thread's alert where there is anything that it should see, and wake it."""
        with self._state:
            serving = self._busy or self.server is not None
            self._activity.alert = serving or self.closed or self.watched or bool(self.queue)
        if self._activity.held:
            self._woken.set()

    def abandon(self) -> None:
        """Let the training thread pass from now on, without a lock: in a forked child one may be held."""
        self.closed = True
        self._busy = False
        self._activity.alert = True

    def reads_wait(self) -> float:
        """Seconds for which reads of a running loop still wait, having had their share of its time."""
        return self._reads_resume - time.monotonic()

    # On the training thread.

    def give_way(self) -> None:
        """Wait while a request runs beside the training thread.

        The order matters: a server thread sets `_busy`, then reads `moves`; the training thread writes
        `moves`, then reads `_busy` (or `alert`, which is set before that). One of them sees the other.
        """
        if self._busy:
            with self._running:
                pass

    def serve(self, place: Place | None, *, write: bool, grad: bool = True, held: bool = False) -> None:
        """Run what waits and may run here. `held`: the loop stands anyway, so no share of it is taken."""
        if not self.queue:
            return
        reads = held or self.reads_wait() <= 0
        admitted: dict[Kind, bool] = {"read": reads, "grad": reads and grad, "write": write}
        kinds = [kind for kind, here in admitted.items() if here]
        ready = self.queue.ready(kinds, place, anywhere=held)
        if not ready:
            return
        began = time.monotonic()
        try:
            with self._running:
                self._serve_all(ready, place)
        except BaseException:
            # An interrupt comes through to the loop; nobody would serve what it has met here.
            for request in ready:
                self.queue.withdraw(request)
                request.fail(
                    Closed("training was interrupted before this request was served", hint="call again")
                )
            raise
        finally:
            if not held and any(request.kind != "write" for request in ready):
                ended = time.monotonic()
                self._reads_resume = ended + (ended - began) * (1 / self._read_share - 1)

    def hold(self, until: Callable[[], bool], place: Place | None, *, write: bool) -> None:
        """Keep the training thread here until `until()` is true, serving every request that comes.

        `write`: whether a write is safe here. Looks again when woken by `refresh`, and every 0.1 s.
        An exception that is raised into the thread, such as KeyboardInterrupt, ends it.
        """
        self._activity.held = True
        try:
            while not (until() or self.closed):
                self._woken.clear()
                if not self.queue and not until():
                    self._woken.wait(_LOOK_AGAIN)
                self.serve(place, write=write, held=True)
        finally:
            self._activity.held = False

    def _serve_all(self, requests: Iterable[Request], place: Place | None) -> None:
        try:
            self.place, self.server = place, threading.get_ident()
            self.refresh()
            for request in requests:
                if self.queue.withdraw(request):
                    self._finish(request)
        finally:
            self.place = self.server = None
            self.refresh()

    def _finish(self, request: Request) -> None:
        try:
            with neutral_modes():
                request.answer = Answer(request.fn(), self._step_count())
        except Exception as error:
            request.error = error
        request.done.set()

    # On the server's threads.

    @property
    def taken_by_caller(self) -> bool:
        """Whether the calling thread, or the training thread that waits for it, serves a request already."""
        return self.server is not None and self.server in (self._activity.ident, threading.get_ident())

    def claim(self, *, asleep: bool = False) -> bool:
        """Take the model from an idle training thread; False where it has just moved or another holds it.

        `asleep`: as for Activity.idle.
        """
        moves = self._activity.moves
        if not self._running.acquire(timeout=_TICK):
            return False
        self._set_busy(True)
        if self.closed or self._activity.moves != moves or not self._activity.idle(asleep=asleep):
            self.let_go()
            return False
        return True

    def wait_for_turn(self, timeout: float | None) -> bool:
        """Take the model from a training thread that waits for this very call; False when time is up."""
        if not self._running.acquire(timeout=-1 if timeout is None else max(0.0, timeout)):
            return False
        self._set_busy(True)
        return True

    def run(self, fn: Callable[[], T], notes: tuple[str, ...] = ()) -> Answer[T]:
        """Run `fn` on the calling thread, which has the model, and let the model go."""
        self.server = threading.get_ident()
        try:
            return self.run_inside(fn, notes)
        finally:
            self.server = None
            self.let_go()

    def run_inside(self, fn: Callable[[], T], notes: tuple[str, ...] = ()) -> Answer[T]:
        """Run `fn` as a part of the request that runs already."""
        with neutral_modes():
            return Answer(fn(), self._step_count(), notes)

    def settle(self) -> None:
        """Wait a while for the request that runs, where the calling thread is no part of it."""
        if not self.taken_by_caller and self._running.acquire(timeout=_SETTLES):
            self._running.release()

    def let_go(self) -> None:
        """Give the model back to the training thread."""
        self._set_busy(False)
        self._running.release()

    def _set_busy(self, busy: bool) -> None:
        self._busy = busy
        self.refresh()
