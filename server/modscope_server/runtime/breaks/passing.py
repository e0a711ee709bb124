"""Statistics of what passes the hooks of modules from one boundary to the next."""

from __future__ import annotations

from collections.abc import Callable

from modscope_server.errors import NoMatch
from modscope_server.inspection.statistics import Reduction, pool
from modscope_server.runtime.breaks.parameters import named_models
from modscope_server.runtime.bus import Draft
from modscope_server.runtime.hooks import HookManager
from modscope_server.runtime.registry import Registry
from modscope_server.runtime.watch_spec import WatchSpec

__all__ = ["Passing"]

_POOL_AT = 1024
"""Reductions that are kept apart; more are pooled, so that a long evaluation takes no memory."""
_ROLES = {
    "forward_pre": "input",
    "forward": "output",
    "backward_pre": "grad_output",
    "backward": "grad_input",
}


class Passing:
    """What has passed one kind of hook at the selected modules since the boundary before.

    Made at a safe point, so that the first iteration is seen whole.

    Args:
        serving: whether the calling thread runs the model for a request, which is no training.
    """

    def __init__(
        self, registry: Registry, hooks: HookManager, kind: str, selector: str, serving: Callable[[], bool]
    ) -> None:
        self._hooks = hooks
        self._role = _ROLES[kind]
        self._serving = serving
        self._coming: list[Reduction] = []
        self._passed: tuple[int, list[Reduction]] = (-1, [])
        self._watches: list[str] = []
        self.notes: list[str] = []
        """What it cannot see."""
        models, glob = named_models(registry, selector)
        spec = WatchSpec(glob=glob, kinds=(kind,), payload="stats")
        try:
            for model in models:
                try:
                    watch = hooks.watch(model, spec, self._take)
                except NoMatch:
                    continue
                self._watches.append(watch.subscription.id)
                self.notes += watch.subscription.notes
        except BaseException:
            self.stop()
            raise
        if not self._watches:
            self.notes.append(f"no module matched {selector!r} when it was set")

    def at(self, step: int) -> list[Reduction]:
        """What has passed in the iteration that this step ends; may be asked several times for it."""
        coming, self._coming = self._coming, []
        known, passed = self._passed
        self._passed = (step, [*passed, *coming] if known == step else coming)
        return self._passed[1]

    def stop(self) -> None:
        """Take the hooks off. Idempotent."""
        for watch in self._watches:
            self._hooks.stop(watch)

    def _take(self, draft: Draft) -> None:
        # A recomputed forward has been seen before; its backward is the first one.
        if self._serving() or (draft.recompute and draft.hook.startswith("forward")):
            return
        for value in draft.values:
            if value.role == self._role and value.reduction is not None:
                self._coming.append(value.reduction)
        if len(self._coming) >= _POOL_AT:
            self._coming = [pool(self._coming)]
