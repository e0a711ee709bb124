"""When something was armed, and how much of the loop has passed since: what has not fired may yet."""

from __future__ import annotations

from modscope_server.runtime.registry import Registered
from modscope_server.runtime.sensors import root_hooks

__all__ = ["Beginning"]

_EVALUATED = 2


class Beginning:
    """The moment at which hooks came, at a safe point.

    Args:
        registered: the model on which they are.
    """

    def __init__(self, registered: Registered) -> None:
        self._registered = registered
        self.step = registered.step_count()
        """step_count then."""
        begun, self._ended = self._counts()
        self._open = begun - self._ended

    @property
    def forwards(self) -> int:
        """Forwards of the root that have begun and ended since, as far as its hooks tell."""
        return max(0, self._counts()[1] - self._ended - self._open)

    @property
    def is_early(self) -> bool:
        """Whether a module that the loop uses may not have been called yet.

        A whole iteration has to pass; where the model is served and no loop trains it, a forward; where it
        is evaluated between iterations, two.
        """
        steps = self._registered.step_count() - self.step
        if not steps and self.forwards >= _EVALUATED and not self._registered.root.training:
            return False
        if steps or self.step:
            return steps < 2 and not (steps == 1 and self.forwards)
        return not (self.forwards and not any(True for _ in self._registered.groups()))

    def _counts(self) -> tuple[int, int]:
        fired = {kind: hook.fired for kind, hook in root_hooks(self._registered.root)}
        return fired.get("forward_pre", 0), fired.get("forward", 0)
