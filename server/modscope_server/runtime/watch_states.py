"""News of the hooks of a watch: those whose state has changed since it was asked last."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from modscope_server.runtime.hook_states import HookState

__all__ = ["Changes"]

_SECONDS = 1.0
_SHARE = 0.005
"""Of the time that the looking of all watches may take."""


class Changes:
    """Looks at the hooks of one watch, at most once a second, and less often where nothing changes.

    Args:
        states: the hooks as they are now.
        at_most: seconds after which it looks in any case, unless looking takes too long.
        watches: how many of them look.
        clock: seconds that pass.
    """

    def __init__(
        self,
        states: Callable[[], Sequence[HookState]],
        at_most: float,
        clock: Callable[[], float] = time.monotonic,
        *,
        watches: Callable[[], int] = lambda: 1,
    ) -> None:
        self._states = states
        self._at_most = at_most
        self._clock = clock
        self._watches = watches
        self._pause = _SECONDS
        self._known: dict[tuple[str, str], tuple[str, str, bool]] = {}
        self.due = 0.0
        """When it looks next, by the clock."""

    def news(self, *, now: bool = False) -> list[HookState]:
        """All hooks at the first time, then those that have changed; none where it is too early to look.

        `now`: look in any case.
        """
        began = self._clock()
        if began < self.due and not now:
            return []
        try:
            states = self._states()
        except RuntimeError:
            # The model was being taken apart just then: look again.
            states = ()
        changed = []
        for state in states:
            key, said = (state.path, state.kind), (state.state, state.reason, bool(state.remedy))
            if self._known.get(key) != said:
                self._known[key] = said
                changed.append(state)
        self._pause = _SECONDS if changed else min(2 * self._pause, self._at_most)
        ended = self._clock()
        self.due = ended + max(self._pause, (ended - began) * max(1, self._watches()) / _SHARE)
        return changed
