"""The hooks of one watch, and what each of them does."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Set

from torch import nn

from modscope_server.inspection.lookup import module_at
from modscope_server.inspection.members import child
from modscope_server.inspection.records import Located
from modscope_server.runtime.audience import Firings, Sink
from modscope_server.runtime.beginnings import Beginning
from modscope_server.runtime.capture import KINDS, MOST_FAULTS, ModuleTap
from modscope_server.runtime.eager_steps import EagerUse
from modscope_server.runtime.hook_states import HookState, State
from modscope_server.runtime.insight import NEVER, Insight
from modscope_server.runtime.registry import Registered
from modscope_server.runtime.watch_spec import WatchSpec

__all__ = ["WatchedHooks"]

_AGES = 2
"""Steps without a call after which a module that was called in compiled code is called in it no more."""
_AGO = 1000
"""Steps that are looked back on."""
_SCRIPTED = "a ScriptModule takes no hooks"
_REPLACED = "another module is at this path now"
_AROUND = "called as module.forward(...), or passed by: what is inside of it is called, and it is not"
_FAULTS = f"switched off after {MOST_FAULTS} faults of modscope's own, which the log of the process tells"


class _Hooked:
    """A module that is watched, and what its tap had counted when the watch was armed.

    Others may see the same, and may have been there before.
    """

    def __init__(self, located: Located, tap: ModuleTap | None, sink: Sink, kinds: Iterable[str]) -> None:
        self.path, self.raw_path = located.path, located.raw_path
        self.module = weakref.ref(located.module)
        self.tap = tap
        self._firings: dict[str, tuple[Firings, int]] = {}
        if tap is not None:
            self._calls, self._raised = tap.calls, tap.raised
            self._with_grad, self._differentiable = tap.calls_with_grad, tap.differentiable
            for kind in kinds:
                firings = tap.firings(sink, kind)
                self._firings[kind] = firings, firings.count

    def fired(self, kind: str) -> tuple[int, int | None]:
        """How often its hook of this kind has fired since, and the step in which it did so last."""
        if kind not in self._firings:
            return 0, None
        firings, before = self._firings[kind]
        count = firings.count - before
        return count, firings.last_step if count else None

    @property
    def calls(self) -> int:
        return 0 if self.tap is None else self.tap.calls - self._calls

    def without_gradient(self, wanted: Callable[[int, int], bool]) -> str:
        """Why no gradient has come, although it was called; "" where one may yet."""
        tap = self.tap
        if tap is None:
            return ""
        if tap.raised - self._raised == self.calls:
            return "each of its calls has raised"
        if tap.calls_with_grad == self._with_grad:
            return "called without gradients only, as in evaluation"
        if tap.differentiable == self._differentiable:
            return "no gradient flows: none of its outputs requires one"
        if tap.differentiable_at is not None and wanted(tap.differentiable_at, tap.step()):
            return "no gradient has come: the loss does not use its outputs, or they are detached"
        return ""


class WatchedHooks:
    """The hooks of one watch. Made at the safe point at which it is armed; asked on any thread.

    Args:
        registered: the model.
        spec: what the watch asks for.
        owner: "watch" or "break".
        watch_id: its id.
        use: what it wants of steps.
        insight: what is known beside.
    """

    def __init__(
        self,
        registered: Registered,
        spec: WatchSpec,
        *,
        owner: str,
        watch_id: str,
        use: EagerUse,
        insight: Insight,
    ) -> None:
        self._registered = registered
        self._spec = spec
        self._owner = owner
        self._ids = (watch_id,)
        self._use = use
        self._insight = insight
        self._kinds = [kind for kind in KINDS if kind in spec.kinds]
        self._beginning = Beginning(registered)
        self._hooks: list[_Hooked] = []

    def add(self, located: Located, tap: ModuleTap | None, sink: Sink) -> None:
        """A module that is watched, before its tap serves the watch by `sink`.

        `tap` is None for one that takes no hooks.
        """
        self._hooks.append(_Hooked(located, tap, sink, self._kinds))

    @property
    def paths(self) -> list[str]:
        """Of the modules that have hooks for it, in PyTorch's order."""
        return [hooked.path for hooked in self._hooks if hooked.tap is not None and self._kinds]

    def states(self) -> list[HookState]:
        """Of each module, in PyTorch's order, that of each kind."""
        if not self._kinds:
            return []
        early = self._beginning.is_early or self._insight.waits(self._use)
        remedy = self._insight.cost(self._use)
        around = _containers(hooked.path for hooked in self._hooks if hooked.calls)
        found, uncalled = [], []
        for hooked in self._hooks:
            common = self._whatever_kind(hooked)
            if not common and not early and not hooked.calls:
                module = hooked.module()
                assert module is not None
                common = self._uncalled(hooked, module, around)
                uncalled.append(module)
            for kind in self._kinds:
                fired, last = hooked.fired(kind)
                state: State = "fired" if fired else "armed"
                reason = common
                if reason:
                    state = "blind"
                elif not fired:
                    state, reason = self._unfired(hooked, kind, early)
                elif kind == "backward" and hooked.tap is not None:
                    reason = hooked.tap.unseen
                found.append(
                    HookState(
                        hooked.path,
                        kind,
                        self._owner,
                        self._ids,
                        fired,
                        last,
                        state=state,
                        reason=reason,
                        remedy="" if hooked.tap is None else remedy,
                    )
                )
        self._insight.suspect(self._registered.root, uncalled)
        return found

    def _whatever_kind(self, hooked: _Hooked) -> str:
        """Why no hook on the module fires any more; "" where that depends."""
        tap = hooked.tap
        if tap is None:
            return _SCRIPTED
        if not _stands(self._registered.root, hooked):
            return _REPLACED
        if tap.faults >= MOST_FAULTS:
            return _FAULTS
        if tap.called_at is None or self._registered.step_count() - tap.called_at < _AGES:
            return ""
        return self._insight.compiled(self._registered.root, hooked.path)

    def _uncalled(self, hooked: _Hooked, module: nn.Module, around: Set[str]) -> str:
        root, since = self._registered.root, self._beginning.step
        reason = self._insight.silence(root, hooked.path, hooked.raw_path, module, since)
        if reason.startswith(f"{NEVER} since") and hooked.path in around:
            return _AROUND
        return reason

    def _unfired(self, hooked: _Hooked, kind: str, early: bool) -> tuple[State, str]:
        """Of a hook that may fire, and has not."""
        spec, step = self._spec, self._registered.step_count()
        if spec.start is not None and step < spec.start:
            return "armed", f"it begins at step {spec.start}"
        if early or hooked.tap is None:
            return "armed", ""
        seen = hooked.tap.phases_seen
        if spec.phase is not None and spec.phase not in seen:
            return "blind", f"called in {', '.join(sorted(seen))} only"
        reason = hooked.without_gradient(self._wanted) if kind.startswith("backward") else ""
        if not reason and spec.stop is not None and step >= spec.stop:
            reason = f"it was to end before step {spec.stop}, and nothing had come"
        return ("blind", reason) if reason else ("armed", "")

    def _wanted(self, first: int, end: int) -> bool:
        """Whether any step from `first` on that is complete now was to be seen whole."""
        steps = range(max(first, end - _AGO), end)
        return not self._spec.max_rate and any(map(self._use.wants, steps))


def _containers(paths: Iterable[str]) -> set[str]:
    """The paths of all that these are inside of."""
    found: set[str] = set()
    for path in paths:
        above, dot, _ = path.rpartition(".")
        while dot and above not in found:
            found.add(above)
            above, dot, _ = above.rpartition(".")
        if path:
            found.add("")
    return found


def _stands(root: nn.Module, hooked: _Hooked) -> bool:
    """Whether the module is still where it was."""
    module: nn.Module | None = root
    for name in hooked.raw_path.split(".") if hooked.raw_path else ():
        module = None if module is None else child(module, name)
    known = hooked.module()
    if known is None or module is known:
        return known is not None
    # A name may hold dots itself.
    place = module_at(root, hooked.path)
    return place is not None and place.module is known
