"""An intervention: hooks that change a value on its way through modules, and what becomes of them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from modscope_server.errors import BadRequest
from modscope_server.inspection.alterations import Alteration
from modscope_server.inspection.lookup import module_at
from modscope_server.inspection.records import Located
from modscope_server.runtime.beginnings import Beginning
from modscope_server.runtime.eager_steps import EagerUse
from modscope_server.runtime.hook_states import HookState
from modscope_server.runtime.hook_states import State as StateOfHook
from modscope_server.runtime.insight import Insight
from modscope_server.runtime.leases import Lease
from modscope_server.runtime.registry import Registered
from modscope_server.runtime.sites import CALLED_BY_TORCH, Site, SiteState, State, Window
from modscope_server.runtime.stance import keep_out

__all__ = ["Intervention", "InterventionSpec", "InterventionState"]

_MOST_TOLD = 5
_AS_A_HOOK: dict[State, StateOfHook] = {
    "waiting": "armed",
    "acting": "fired",
    "not acting": "blind",
    "ended": "fired",
}
HookName = Literal["forward", "forward_pre"]


@dataclass(frozen=True, kw_only=True)
class InterventionSpec:
    """What somebody asks for. Raises BadRequest for what has no meaning."""

    glob: str
    """On module paths."""
    how: Alteration
    """What is done to the value."""
    type: str = ""
    """Class of the modules, by isinstance; empty for any."""
    hook: HookName = "forward"
    """"forward" changes what modules give, "forward_pre" what they get."""
    key: str | None = None
    """Which tensor of a structured value; None is the only one."""
    calls: int = 0
    """How often it acts at each module; 0 for no limit."""
    start: int | None = None
    """First step at which it acts; None for any."""
    stop: int | None = None
    """First step at which it acts no more; None for none."""

    def __post_init__(self) -> None:
        if self.calls < 0:
            raise BadRequest(f"calls is {self.calls}", hint="give 1 or more, 0 for no limit", field="calls")
        for name, step in (("start", self.start), ("stop", self.stop)):
            if step is not None and step < 0:
                raise BadRequest(f"{name} is {step}", hint="steps are counted from 0", field=name)
        if self.start is not None and self.stop is not None and self.start >= self.stop:
            raise BadRequest(
                f"it would begin at step {self.start} and end before step {self.stop}",
                hint="give a stop after start",
                field="stop",
            )


@dataclass(frozen=True)
class InterventionState:
    """An intervention as it is now."""

    id: str
    model: str
    spec: InterventionSpec
    paths: tuple[str, ...]
    """Of the modules that it acts at."""
    step: int
    """step_count when it was made."""
    who: str
    time: float
    """When it was made, in Unix seconds."""
    applied: int
    """How often it has changed a value."""
    last_step: int | None
    """step_count when it did so last."""
    state: State
    note: str
    """Why it does not act, or has ended."""
    lease: Lease | None


class Intervention:
    """Some hooks that do the same, at one or several modules. Made by `Interventions`."""

    def __init__(
        self,
        id: str,
        registered: Registered,
        spec: InterventionSpec,
        chosen: Sequence[Located],
        who: str,
        insight: Insight,
    ) -> None:
        self.id = id
        self.registered = registered
        self.spec = spec
        self.who = who
        self.time = time.time()
        self.step = registered.step_count()
        self.lease: Lease | None = None
        self.window = Window(spec.calls, spec.start, spec.stop, registered.step_count)
        self.use = EagerUse(self._wants)
        self._insight = insight
        self._beginning = Beginning(registered)
        self.sites = [Site(located, spec.hook, spec.how, spec.key, self.window) for located in chosen]

    @property
    def ended(self) -> str:
        """Why it has ended; "" while it has not."""
        self.window.is_open(self.window.step_count())
        return self.window.ended or self._all_done()

    def arm(self) -> None:
        """Put the hooks on, at a write point; where one cannot be, none stays."""
        try:
            for site in self.sites:
                site.attach()
        except BaseException:
            self.detach()
            raise
        keep_out(*CALLED_BY_TORCH)
        self._insight.begin(self.use)

    def end(self, reason: str) -> None:
        """Act at no later call. The hooks go at the next write point, or when they find it out."""
        self.window.ended = self.window.ended or reason
        self._insight.end(self.use)

    def detach(self) -> None:
        """Take the hooks off, at a write point. Idempotent."""
        self._insight.end(self.use)
        for site in self.sites:
            site.detach()

    def hook_states(self) -> list[HookState]:
        """Its hooks, as those of watches are told of."""
        remedy = self._insight.cost(self.use)
        told = [(site, self._state_of(site)) for site in self.sites]
        return [
            HookState(
                site.path,
                self.spec.hook,
                "intervention",
                (),
                site.calls,
                site.called_at,
                intervention_id=self.id,
                state=_AS_A_HOOK[state],
                reason="" if state in ("acting", "ended") else note,
                remedy=remedy,
            )
            for site, (state, note) in told
        ]

    def state(self) -> InterventionState:
        """What it is and does now."""
        state, note = self._told()
        steps = [site.applied_at for site in self.sites if site.applied_at is not None]
        return InterventionState(
            id=self.id,
            model=self.registered.name,
            spec=self.spec,
            paths=tuple(site.path for site in self.sites),
            step=self.step,
            who=self.who,
            time=self.time,
            applied=sum(site.applied for site in self.sites),
            last_step=max(steps, default=None),
            state=state,
            note=note,
            lease=self.lease,
        )

    def _told(self) -> tuple[State, str]:
        if self.ended:
            return "ended", self.ended
        found = [(site.path, self._state_of(site)) for site in self.sites]
        for state in ("not acting", "waiting", "acting"):
            notes = [_labelled(path, told.note, len(found)) for path, told in found if told.state == state]
            if notes and (state != "waiting" or len(notes) == len(found)):
                shown = "; ".join(filter(None, notes[:_MOST_TOLD]))
                more = len(notes) - _MOST_TOLD
                return state, f"{shown}; and {more} more" if more > 0 else shown
        return "acting", ""

    def _state_of(self, site: Site) -> SiteState:
        root, module = self.registered.root, site.module()
        place = module_at(root, site.path)
        if module is None or place is None or place.module is not module:
            return SiteState("not acting", "the module there is another one now")
        told = site.state(early=self._beginning.is_early or self._insight.waits(self.use))
        if told.state != "not acting" or not site.unseen:
            return told
        if not told.note:
            reason = self._insight.silence(root, site.path, site.raw_path, module, self.step)
            self._insight.suspect(root, [module])
            return SiteState("not acting", reason)
        return SiteState("not acting", self._insight.compiled(root, site.path) or told.note)

    def _wants(self, step: int) -> bool:
        """Whether it may act in that step: then compiled code, which skips hooks, must not run."""
        window = self.window
        begun = window.start is None or step >= window.start
        over = window.stop is not None and step >= window.stop
        return begun and not over and not window.ended and not all(site.done for site in self.sites)

    def _all_done(self) -> str:
        done = bool(self.spec.calls) and all(site.done for site in self.sites)
        times = "once" if self.spec.calls == 1 else f"{self.spec.calls} times"
        return f"it has acted {times}, as it was asked to" if done else ""


def _labelled(path: str, note: str, of: int) -> str:
    return f"{path or 'the root'}: {note}" if note and of > 1 else note
