"""What watches see alike: taps and boundaries publish each draft once for all of them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace

from modscope_server.runtime.bus import Draft, Fan, Item, Queues
from modscope_server.runtime.captured import Form
from modscope_server.runtime.watch_spec import BOUNDARY_KINDS, WatchSpec
from modscope_server.runtime.windows import WatchWindow

__all__ = ["Selection", "shared_by"]


class Selection:
    """A subscriber, or several that want the same of the same modules, as taps see them.

    Args:
        queues: of the subscriptions that it is for.
        take: gets each draft on the thread of the hook, instead of subscriptions.
        pack: as a fan has it.
    """

    def __init__(
        self,
        spec: WatchSpec,
        queues: Queues,
        take: Callable[[Draft], None] | None = None,
        pack: Callable[[Draft], Item] | None = None,
    ) -> None:
        self.kinds = frozenset(spec.kinds)
        self.form = Form(spec.payload, spec.sample, spec.index, spec.dtype)
        self.window = WatchWindow(spec)
        self.fan = Fan(queues, at_once=spec.payload == "tensor", pack=pack)
        self.publish: Callable[[Draft], None] = take or self.fan.publish


def shared_by(spec: WatchSpec, modules: Sequence[object]) -> Hashable | None:
    """What is the same for all watches that can share a selection; None for one that needs its own.

    One that makes hooks wait makes them wait for itself alone, and a rate counts what one watch has had.
    """
    if spec.overflow == "block" or spec.max_rate or not set(spec.kinds).isdisjoint(BOUNDARY_KINDS):
        return None
    alike = replace(spec, overflow="drop_oldest", queue=0, keep=0.0)
    return alike, tuple(map(id, modules))
