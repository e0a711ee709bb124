"""Why a hook has not fired although the loop went on: all that is known beside what it has counted."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from torch import nn

from modscope_server.errors import Closed, NoSafePoint
from modscope_server.runtime.compiled import is_compiled
from modscope_server.runtime.direct_use import DirectUse, used_by_its_owner
from modscope_server.runtime.eager_steps import EagerSteps, EagerUse
from modscope_server.runtime.safepoint import SafePoint

__all__ = ["NEVER", "Insight"]

_COMPILED = "it is compiled, and compiled code skips hooks that came after it: {}"
NEVER = "never called"
_SOON = 0.5
"""Seconds."""
_DIRECT = (
    "called as module.forward(...), or its weights are used directly: its parameters get gradients, and it "
    "is not called"
)


class Insight:
    """What is known of a server's models beside what their hooks have counted.

    Args:
        eager_steps: what makes hooks fire in compiled code; None where nothing does.
        direct_use: finds modules that work without being called; None where nothing does.
    """

    def __init__(self, eager_steps: EagerSteps | None = None, direct_use: DirectUse | None = None) -> None:
        self.eager_steps = eager_steps
        self.direct_use = direct_use

    def begin(self, use: EagerUse) -> None:
        """Have hooks fire in compiled code from here on, a safe point."""
        if self.eager_steps is not None:
            self.eager_steps.begin(use)

    def notes(self, root: nn.Module, paths: Sequence[str], what: str) -> tuple[str, ...]:
        """What is to be known of compiled code by one whose hooks are on these modules; `what` they are."""
        return () if self.eager_steps is None else self.eager_steps.notes(root, paths, what)

    def end(self, use: EagerUse) -> None:
        """Have the compiled code back. Idempotent."""
        if self.eager_steps is not None:
            self.eager_steps.end(use)

    def look(self) -> None:
        """See what has changed in the process; at times, on any thread."""
        if self.eager_steps is not None:
            self.eager_steps.look()

    def close(self, safepoint: SafePoint) -> None:
        """Take off what looks at parameters, where the loop comes by soon; else it goes with them, inert."""
        if self.direct_use is not None and self.direct_use.is_looking:
            with suppress(NoSafePoint, Closed):
                safepoint.run(self.direct_use.dismiss_all, kind="grad", timeout=_SOON)

    def abandon(self) -> None:
        """Have the compiled code back in a forked child, taking no lock."""
        if self.eager_steps is not None:
            self.eager_steps.abandon()

    def silence(self, root: nn.Module, path: str, raw_path: str, module: nn.Module, since: int) -> str:
        """Why the hook of a module has not fired since that step, although the loop went on."""
        compiled = self.compiled(root, path)
        if compiled:
            return compiled
        if type(module).forward is nn.Module.forward:
            return f"{NEVER}: a {type(module).__name__} has no forward"
        owner = used_by_its_owner(root, raw_path)
        if owner:
            return f"{NEVER}: {owner} uses its weights directly"
        if self.direct_use is not None and self.direct_use.found(module):
            return _DIRECT
        never = f"{NEVER} since step {since}"
        obstacle = self.obstacle
        return f"{never}, unless by compiled code, which skips hooks: {obstacle}" if obstacle else never

    def compiled(self, root: nn.Module, path: str) -> str:
        """Why compiled code skips the hooks of this module; "" where it does not."""
        obstacle = self.obstacle
        return _COMPILED.format(obstacle) if obstacle and is_compiled(root, path) else ""

    def suspect(self, root: nn.Module, modules: Sequence[nn.Module]) -> None:
        """Look for signs that these modules work without being called."""
        if self.direct_use is not None and modules:
            self.direct_use.suspect(root, modules)

    @property
    def obstacle(self) -> str:
        """Why compiled code skips hooks; "" where nothing is compiled, or its steps run eagerly."""
        return "" if self.eager_steps is None else self.eager_steps.obstacle

    def waits(self, use: EagerUse) -> bool:
        """Whether its hooks could not fire yet, since compiled code ran in all steps so far."""
        return self.eager_steps is not None and self.eager_steps.waits(use)

    def cost(self, use: EagerUse) -> str:
        """What it has cost that hooks fire in compiled code; "" where nothing was needed."""
        return "" if self.eager_steps is None else self.eager_steps.cost(use)
