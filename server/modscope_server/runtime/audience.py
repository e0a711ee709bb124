"""Who listens at a module: worked out when subscribers come and go, so that a call has little left to do."""

from __future__ import annotations

from typing import NamedTuple, Protocol, TypeAlias

from modscope_server.runtime.captured import Form
from modscope_server.runtime.drafts import Draft
from modscope_server.runtime.rates import Rate
from modscope_server.runtime.watch_spec import KINDS
from modscope_server.runtime.windows import WatchWindow

__all__ = ["NOBODY", "Audience", "Counted", "Firings", "Listeners", "Sink"]

_REMEMBERED = 64


class Sink(Protocol):
    """A subscriber as a tap sees it."""

    kinds: frozenset[str]
    form: Form
    window: WatchWindow

    def publish(self, draft: Draft) -> None: ...


class Firings:
    """How often hooks of one kind at a module have fired for one subscriber, and in which step the last."""

    __slots__ = ("count", "last_step")

    def __init__(self) -> None:
        self.count = 0
        self.last_step: int | None = None


Counted: TypeAlias = "dict[tuple[Sink, str], Firings]"
"""By subscriber and kind."""


class Listeners(NamedTuple):
    """The subscribers to one kind of hook."""

    sinks: tuple[Sink, ...]
    forms: frozenset[Form]
    only: Form | None
    """What they want, where all want the same."""
    rates: tuple[Rate, ...]
    """Whose events are counted."""
    firings: tuple[Firings, ...]
    """One for each of the subscribers."""


class Audience:
    """Some subscribers at one module, by the kind of hook.

    Args:
        sinks: these.
        counted: the firings of the module's hooks; what is missing is added.
    """

    __slots__ = ("_counted", "_parts", "gradients", "is_plain", "kinds", "needs_beginning", "simple", "sinks")

    def __init__(self, sinks: tuple[Sink, ...], counted: Counted) -> None:
        self.sinks = sinks
        self._counted = counted
        self.kinds = {kind: listeners for kind in KINDS if (listeners := _listeners(sinks, kind, counted))}
        self.is_plain = all(sink.window.is_plain for sink in sinks)
        """Whether they want each firing."""
        self.gradients = "backward" in self.kinds or "backward_pre" in self.kinds
        is_rated = any(listeners.rates for listeners in self.kinds.values())
        self.needs_beginning = is_rated or "forward_pre" in self.kinds or "backward" in self.kinds
        """Whether the hook before forward is needed: to a rate it tells where whole forwards begin."""
        forward = self.kinds.get("forward") if len(self.kinds) == 1 and self.is_plain else None
        self.simple = forward if forward is not None and forward.only is not None else None
        """The listeners to forward, where nobody wants anything else, and all want each call in one form."""
        self._parts: dict[tuple[Sink, ...], Audience] = {}

    def of_call(self, step: int, call: int, training: bool, source: int) -> tuple[Audience, Audience]:
        """Those who want this call of the module `source`, and those whose rate leaves it out."""
        wanting: list[Sink] = []
        left_out: list[Sink] = []
        for sink in self.sinks:
            window = sink.window
            if window.is_plain:
                wanting.append(sink)
            elif window.covers(step, call, training):
                rate = window.rate
                admitted = rate is None or rate.admits(step, training, source)
                (wanting if admitted else left_out).append(sink)
        return self._part(wanting), self._part(left_out)

    def leave_out(self, kind: str) -> None:
        """Count a firing that they do not get."""
        listeners = self.kinds.get(kind)
        if listeners is not None:
            for rate in listeners.rates:
                rate.count(False)

    def _part(self, sinks: list[Sink]) -> Audience:
        if not sinks:
            return NOBODY
        if len(sinks) == len(self.sinks):
            return self
        key = tuple(sinks)
        found = self._parts.get(key)
        if found is None:
            if len(self._parts) >= _REMEMBERED:
                self._parts = {}
            found = self._parts[key] = Audience(key, self._counted)
        return found


def _listeners(sinks: tuple[Sink, ...], kind: str, counted: Counted) -> Listeners | None:
    wanting = tuple(sink for sink in sinks if kind in sink.kinds)
    if not wanting:
        return None
    forms = frozenset(sink.form for sink in wanting)
    rates = tuple(sink.window.rate for sink in wanting if sink.window.rate is not None)
    firings = tuple(counted.setdefault((sink, kind), Firings()) for sink in wanting)
    return Listeners(wanting, forms, wanting[0].form if len(forms) == 1 else None, rates, firings)


NOBODY = Audience((), {})
