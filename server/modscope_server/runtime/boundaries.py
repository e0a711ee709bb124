"""The training thread's side of the safe point: where it is, and what is done there.

Everything here runs on that thread, inside of hooks or of scope.step; nothing raises into the loop.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable
from threading import Lock, get_ident
from typing import Any, Protocol

import torch
from torch import nn
from torch.optim.optimizer import Optimizer

from modscope_server.runtime.activity import Activity, inside_another, inside_step
from modscope_server.runtime.pending import PendingForwards
from modscope_server.runtime.queue import Place
from modscope_server.runtime.sensors import (
    hook_root,
    in_backward,
    listen_to_optimizers,
    root_hooks,
    stop_listening,
)
from modscope_server.runtime.skipping import SkippedSteps
from modscope_server.runtime.steps import StepCounter
from modscope_server.runtime.turns import Turns

__all__ = ["Boundaries", "Control", "Follower", "Place"]

_STEPS_BEFORE_DOUBT = 3
_NO_BACKWARD = -1
_backward_id = torch._C._current_graph_task_id


class Control(Protocol):
    """Who wants to hear of updates and step boundaries, and may hold the training thread there."""

    def updated(self, optimizer: Optimizer) -> None:
        """An optimizer of these models has stepped; the gradients that it used are still there."""

    def boundary(self, step: int, place: Place, write_point: bool) -> None:
        """Iteration `step` is complete; may come several times for one step. May call SafePoint.hold."""


class Follower(Protocol):
    """Who looks at what iterations leave behind. It never raises, and holds nobody up."""

    def updated(self, optimizer: Optimizer, step: int) -> None:
        """An optimizer has stepped in iteration `step`, and the gradients that it used are still there.

        Inside backward, perhaps on a thread of autograd: the iteration is not complete then.
        """

    def boundary(self, step: int, place: Place) -> None:
        """Iteration `step` is complete, before any request is served there; may come several times."""


class Boundaries:
    """Follows the training thread through forwards and steps, and serves requests in between.

    Args:
        roots: the registered root modules; each gets one pre- and one post-hook.
        is_ours: whether an optimizer's steps concern these models.
        ours: ids of optimizers of which that is known already; asking it costs less.
        optimizers: how many optimizers were given.
        read_share: share of a running loop's time that reads may take; later ones wait.
        scaler: the loop's GradScaler, or None.
    """

    def __init__(
        self,
        roots: Iterable[nn.Module],
        *,
        is_ours: Callable[[Optimizer], bool],
        ours: Collection[int],
        optimizers: int,
        read_share: float,
        scaler: Any,
    ) -> None:
        self.activity = Activity()
        self.steps = StepCounter(optimizers)
        self.pending = PendingForwards(self._backward_begins)
        self._skipping = SkippedSteps(scaler)
        self._turns = Turns(self.activity, lambda: self.steps.count, read_share)
        self._is_ours = is_ours
        self._ours = ours
        self._control: Control | None = None
        self._boundary: Place | None = None
        self._changing = Lock()
        self._chores: tuple[Callable[[], object], ...] = ()
        self._followers: tuple[Follower, ...] = ()
        self._roots = list(roots)
        self._handles = [handle for root in self._roots for handle in hook_root(root, self)]
        listen_to_optimizers(self)
        self._see_watchers()

    @property
    def step_count(self) -> int:
        """Completed training iterations."""
        return self.steps.count

    def set_step_count(self, count: int) -> None:
        """Count on from there; called at a safe point, as by a return to a snapshot."""
        self.steps.go_to(count)
        self._skipping.forget()

    @property
    def place(self) -> Place | None:
        """Where in its iteration the loop stands while a request runs; None where that is not known."""
        return self._turns.place

    def ends_iteration(self, place: Place | None) -> bool:
        """Whether nothing of an iteration is known to follow after this place in the loop."""
        return place is not None and place == (self.steps.ends or place)

    @property
    def steps_per_second(self) -> float:
        """Over the last iterations; 0.0 where too few are known."""
        return self.steps.per_second

    @property
    def skipped_steps(self) -> int:
        """Iterations whose optimizer step the scaler has skipped, where one was given."""
        return self._skipping.count

    @property
    def backward_expected(self) -> bool:
        """Whether the outputs of some forward are alive and not yet back-propagated."""
        return self.pending.any()

    @property
    def notes(self) -> tuple[str, ...]:
        """What limits what can be seen of the loop."""
        fired = any(hook.fired for root in self._roots for _, hook in root_hooks(root))
        if fired or self.steps.count < _STEPS_BEFORE_DOUBT:
            return ()
        return (
            "the hooks of the model's root do not fire (it is compiled, scripted, or called by another "
            "name): optimizer steps alone tell where the loop is",
        )

    @property
    def control(self) -> Control | None:
        """Who is told of updates and boundaries; None costs the loop nothing."""
        return self._control

    @control.setter
    def control(self, control: Control | None) -> None:
        self._control = control
        self._see_watchers()

    def add_chore(self, chore: Callable[[], object]) -> None:
        """Have it called on that thread at each outermost forward of a root and after each optimizer step."""
        with self._changing:
            self._chores = (*self._chores, chore)
        self._see_watchers()

    def remove_chore(self, chore: Callable[[], object]) -> None:
        """Have it called no more. Idempotent."""
        with self._changing:
            self._chores = tuple(other for other in self._chores if other != chore)
        self._see_watchers()

    def add_follower(self, follower: Follower) -> None:
        """Have it told of each update and of each iteration that is complete."""
        with self._changing:
            self._followers = (*self._followers, follower)
        self._see_watchers()

    def remove_follower(self, follower: Follower) -> None:
        """Have it told no more. Idempotent."""
        with self._changing:
            self._followers = tuple(other for other in self._followers if other is not follower)
        self._see_watchers()

    def hold(self, until: Callable[[], bool]) -> None:
        """Keep the training thread at this boundary until `until()`, serving what may be served here."""
        self._turns.hold(until, self._boundary, write=not self.backward_expected)
        self.steps.forget_pace()

    def wake(self) -> None:
        """Have `hold` look at its condition again, now."""
        self._turns.refresh()

    def stop_sensing(self) -> None:
        """Take all hooks off. Idempotent."""
        stop_listening(self)
        for handle in self._handles:
            handle.remove()

    def mark_step(self, report: Callable[[int], None] | None = None) -> None:
        """The loop says that an iteration is complete; `report` is told its number before requests run."""
        if self._turns.server == get_ident() or self._turns.closed:
            return
        self.activity.adopt()
        self._moved()
        self._skipping.look(stepped=self.steps.ended)
        self.steps.mark()
        self.pending.updates[id(self)] = self.activity.moves
        if report is not None:
            report(self.steps.count)
        self._tell_followers("mark")
        self._turns.serve("mark", write=not self.backward_expected)
        self._tell_boundary("mark")

    def forward_begins(self, module: nn.Module) -> None:
        """A root's forward begins, and the hook could not deal with it alone."""
        activity, ident = self.activity, get_ident()
        if ident == self._turns.server or self._turns.closed or in_backward():
            return
        enabled = torch.is_grad_enabled()
        if enabled or activity.ident is None:
            activity.adopt()
        elif ident != activity.ident:
            return
        self._moved()
        if activity.depth and not inside_another(self._roots):
            # Of a forward that an interrupt has ended torch does not tell.
            activity.depth = 0
        if activity.depth == 0:
            if enabled and not self.pending.attention:
                self.pending.unfollowed = activity.moves
            for chore in self._chores:
                chore()
            if not inside_step():
                self._outermost_forward(training=enabled and module.training)
            elif enabled and module.training:
                # A closure's forward: no request runs within a step, but it begins the next iteration.
                self.steps.forward_began()
        activity.depth += 1

    def _outermost_forward(self, *, training: bool) -> None:
        ended = False
        if training:
            ended = self.steps.ended
            if self._skipping and self._skipping.look(stepped=ended):
                self.steps.skipped()
                ended = True
            self.steps.forward_began()
        if ended:
            self._tell_followers("forward")
        if self._turns.queue:
            self._turns.serve("forward" if ended else None, grad=False, write=not self.backward_expected)
        if ended:
            self._tell_boundary("forward")

    def forward_ended(self, output: object) -> None:
        """A root's forward has ended, and the hook could not deal with it alone."""
        activity, ident = self.activity, get_ident()
        if ident == self._turns.server or ident != activity.ident or self._turns.closed or in_backward():
            return
        self._moved()
        activity.depth = max(0, activity.depth - 1)
        if activity.depth:
            return
        if self.pending.attention and torch.is_grad_enabled():
            self.pending.follow(output)
        # Where the forward has raised, torch walks over the hooks: none may come or go.
        raised = sys.exc_info()[1] is not None
        if self._turns.queue and not raised and not self.steps.begun and not inside_step():
            self._turns.serve(None, grad=False, write=not self.backward_expected)

    def optimizer_begins(self, optimizer: Optimizer) -> None:
        """An optimizer is about to step: wait here for a request that found the training thread idle."""
        if id(optimizer) not in self._ours and not self._is_ours(optimizer):
            return
        activity = self.activity
        if get_ident() == activity.ident:
            activity.moves += 1
            if not activity.alert:
                return
        if self._turns.closed or self._turns.server == get_ident():
            return
        if not in_backward():
            activity.adopt()
        self._moved()

    def optimizer_stepped(self, optimizer: Optimizer) -> None:
        """An optimizer has stepped."""
        if id(optimizer) not in self._ours and not self._is_ours(optimizer):
            return
        activity = self.activity
        if not activity.alert and get_ident() == activity.ident and _backward_id() == _NO_BACKWARD:
            self._count_update(optimizer)
            if not activity.alert:
                return
        elif self._turns.closed or self._turns.server == get_ident():
            return
        elif in_backward():
            self.pending.updates[id(optimizer)] = activity.moves
            self.steps.stepped_inside_backward()
            for follower in self._followers:
                follower.updated(optimizer, self.steps.of_backward)
            return
        else:
            activity.adopt()
            self._count_update(optimizer)
        self._turns.give_way()
        self._after_update(optimizer)

    def _count_update(self, optimizer: Optimizer) -> None:
        activity = self.activity
        moves = activity.moves = activity.moves + 1
        activity.depth = 0
        self.pending.updates[id(optimizer)] = moves
        self.steps.optimizer_stepped(id(optimizer))

    def _backward_begins(self) -> None:
        """A followed forward is back-propagated: wait here for a request that found the thread idle."""
        self._moved()

    def _after_update(self, optimizer: Optimizer) -> None:
        for follower in self._followers:
            follower.updated(optimizer, self.steps.count)
        if self._control is not None:
            self._control.updated(optimizer)
        for chore in self._chores:
            chore()
        if self.steps.complete:
            self._tell_followers("optimizer")
            if self._turns.queue:
                self._turns.serve("optimizer", write=not self.backward_expected)
            self._tell_boundary("optimizer")

    def _tell_followers(self, place: Place) -> None:
        for follower in self._followers:
            follower.boundary(self.steps.count, place)

    def _tell_boundary(self, place: Place) -> None:
        if self._control is not None:
            self._boundary = place
            self._control.boundary(self.steps.count, place, not self.backward_expected)

    def _moved(self) -> None:
        self.activity.moves += 1
        self._turns.give_way()

    def _see_watchers(self) -> None:
        self._turns.watched = bool(
            self._chores or self._followers or self._control is not None or self._skipping
        )
        self._turns.refresh()
