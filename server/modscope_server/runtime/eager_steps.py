"""The steps that somebody wants to see the inside of run eagerly, where code is compiled; the others do not.

It is decided at each boundary of the loop, on its thread, for the iteration that follows.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from typing import Protocol

from torch import nn
from torch.optim.optimizer import Optimizer

from modscope_server.runtime import stance
from modscope_server.runtime.boundaries import Follower, Place
from modscope_server.runtime.compiled import anything_compiled, is_compiled, something_was_compiled
from modscope_server.runtime.sensors import root_hooks
from modscope_server.runtime.steps import StepCounter

__all__ = ["EagerSteps", "EagerUse", "Loop"]

_LOG = logging.getLogger("modscope_server")
_MOST_MISSED = 1000
_NOTE = (
    "{what} is compiled: the steps that {who} run eagerly, by torch.compiler.set_stance; the compiled code "
    "is back when the {use} ends"
)
_WHO = {"watch": "are watched", "intervention": "it acts in"}


class Loop(Protocol):
    """A training loop, as far as this has to know it."""

    steps: StepCounter

    @property
    def step_count(self) -> int: ...
    def add_chore(self, chore: Callable[[], object]) -> None: ...
    def remove_chore(self, chore: Callable[[], object]) -> None: ...
    def add_follower(self, follower: Follower) -> None: ...
    def remove_follower(self, follower: Follower) -> None: ...


class EagerUse:
    """What a watch or an intervention wants of the steps, and what it has had.

    Args:
        wants: whether it wants to see, or to change, the step of that number.
    """

    def __init__(self, wants: Callable[[int], bool]) -> None:
        self.wants = wants
        self.steps = 0
        """Whole iterations that have run eagerly for it."""
        self.first = 0
        """The first iteration that can have run eagerly from its beginning."""
        self.forwards = 0
        """How many forwards of the roots there had been when it began."""


class EagerSteps:
    """Those of one server.

    Args:
        roots: the registered models.
        loop: tells of its boundaries, each of which decides anew.
    """

    def __init__(self, roots: Iterable[nn.Module], loop: Loop) -> None:
        self._roots = list(roots)
        self._loop = loop
        self._uses: tuple[EagerUse, ...] = ()
        self._compiled = False
        self._follows = False
        self._eager = False
        """Whether the iteration that runs was wanted, and compiled functions ran eagerly at its beginning."""
        self._was_eager = False
        self._leaving = 0
        """Boundaries since nobody wants anything."""
        self._thwarted = False
        """Whether the stance was another one at the end of the last iteration than at its beginning."""
        self._saw_forwards = False
        """Whether the loop's forwards were told of before, in compiled code."""
        self._since = 0
        """The first iteration of those in a row that have run eagerly from their beginning."""
        self._step = 0
        self._mutex = threading.Lock()

    def begin(self, use: EagerUse) -> None:
        """Have the steps that it wants run eagerly from here on; call it at a safe point."""
        self._compiled = self._compiled or anything_compiled(self._roots)
        use.first = self._loop.step_count
        use.forwards = self._forwards()
        with self._mutex:
            self._uses = (*self._uses, use)
        self._follow()

    def end(self, use: EagerUse) -> None:
        """Have the compiled code back, where nobody else wants it away. Idempotent; for any thread."""
        with self._mutex:
            self._uses = tuple(other for other in self._uses if other is not use)
            if not self._uses:
                # What has begun eagerly may still tell of a forward: the loop is left when that is over.
                self._leaving = 0
                self._let_go()
        if self._uses and self._follows:
            self.decide()

    def look(self) -> None:
        """See whether something was compiled meanwhile. Costs nothing; for any thread."""
        if not self._compiled and something_was_compiled() and self._uses:
            self._compiled = True
            self._follow()
            self._since = self._loop.step_count + 1

    def decide(self) -> None:
        """Choose for the iteration that begins, on the thread of the loop. A fault of ours ends all of it."""
        try:
            self._decide()
        except Exception:
            _LOG.exception("what is compiled cannot be made to run eagerly; training goes on")
            self._leave()

    def boundary(self, step: int, place: Place) -> None:
        """An iteration is complete, and another begins."""
        self.decide()

    def updated(self, optimizer: Optimizer, step: int) -> None:
        """An optimizer has stepped: nothing is decided by that alone."""

    def _decide(self) -> None:
        step = self._loop.step_count
        with self._mutex:
            if not self._uses:
                self._leaving += 1
                if self._leaving > 1:
                    self._leave()
                return
            if step != self._step:
                self._count(step)
            if not any(use.wants(step) for use in self._uses):
                self._let_go()
                return
            if not self._eager:
                # Compiled code that has begun goes on to its end.
                self._since = step + stance.inside_compiled_code()
                self._saw_forwards = self._loop.steps.sees_forwards
            self._eager = stance.run_eagerly(self)
            self._was_eager = self._was_eager or self._eager

    def abandon(self) -> None:
        """Have the compiled code back in a forked child, taking no lock."""
        self._uses = ()
        stance.abandon()

    @property
    def obstacle(self) -> str:
        """Why compiled code skips hooks in spite of all this; "" where nothing is in the way."""
        if not self._compiled:
            return ""
        if not stance.supported():
            return "this torch has no torch.compiler.set_stance"
        own = stance.of_the_program()
        if own and not stance.holds():
            return f"the program has set the stance {own!r} of torch.compiler.set_stance, which is left alone"
        if self._thwarted:
            return "the program sets torch.compiler.set_stance within its steps, which is left alone"
        return ""

    def waits(self, use: EagerUse) -> bool:
        """Whether all iterations that have passed ran compiled, since it wanted none of them."""
        passed = self._loop.step_count > use.first
        return self._compiled and passed and not use.steps and not self.obstacle

    def cost(self, use: EagerUse) -> str:
        """What this has cost so far, such as "eager steps: 12"; "" where nothing is compiled."""
        if not self._compiled:
            return ""
        forwards = self._forwards() - use.forwards
        if use.steps or self._loop.step_count > use.first or not forwards:
            return f"eager steps: {use.steps}"
        return f"eager forwards: {forwards}"

    def notes(self, root: nn.Module, paths: Iterable[str], use: str) -> tuple[str, ...]:
        """What is to be known by one who has just begun; `use` is "watch" or "intervention"."""
        if not self._compiled:
            return ()
        if self.obstacle:
            return (f"compiled code skips hooks that came after it: {self.obstacle}",)
        given = [path for path in paths if is_compiled(root, path)]
        what = "some code of this program"
        if given:
            what = repr(given[0]) if given[0] else "the model"
            what += ", with others," if given[0] and len(given) > 1 else ""
        return (_NOTE.format(what=what, who=_WHO[use], use=use),)

    def _follow(self) -> None:
        """Have the loop tell of its boundaries, and decide for the iteration that runs."""
        if self._compiled:
            if not self._follows:
                self._follows = True
                # Steps tell of iterations, and forwards of a stance that the program has set meanwhile.
                self._loop.add_chore(self.decide)
                self._loop.add_follower(self)
            self.decide()

    def _leave(self) -> None:
        self._follows = False
        self._loop.remove_chore(self.decide)
        self._loop.remove_follower(self)
        self._let_go()
        if self._was_eager:
            self._was_eager = False
            self._loop.steps.sees_forwards = self._saw_forwards

    def _let_go(self) -> None:
        if self._eager:
            self._eager = False
            self._loop.steps.sees_forwards = self._saw_forwards
        stance.let_go(self)

    def _count(self, step: int) -> None:
        """Add the iterations that are complete now, at a boundary."""
        first, self._step = self._step, step
        self._thwarted = self._eager and not stance.holds()
        if not self._eager or self._thwarted or step < first:
            return
        for use in self._uses:
            missed = range(max(first, use.first, self._since, step - _MOST_MISSED), step)
            use.steps += sum(map(use.wants, missed))

    def _forwards(self) -> int:
        return sum(hook.fired for root in self._roots for kind, hook in root_hooks(root) if kind == "forward")
