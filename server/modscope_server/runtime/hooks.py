"""Watches: who observes which modules. Hooks exist only while somebody watches."""

from __future__ import annotations

import itertools
import secrets
import threading
from collections.abc import Callable, Hashable, Sequence
from functools import partial

import torch
from torch import nn

from modscope_server.errors import BadRequest, LimitExceeded, UnknownWatch
from modscope_server.inspection.selection import some_modules
from modscope_server.inspection.structure import Located
from modscope_server.runtime.boundary_events import BoundaryEvents
from modscope_server.runtime.bus import Counters, Draft, Item, Queues, Subscription
from modscope_server.runtime.capture import KINDS, ModuleTap
from modscope_server.runtime.copy_memory import COPY_MEMORY
from modscope_server.runtime.cuda_copies import StepEnds
from modscope_server.runtime.eager_steps import EagerUse
from modscope_server.runtime.hook_states import HookState, merged
from modscope_server.runtime.insight import Insight
from modscope_server.runtime.metric_events import METRIC
from modscope_server.runtime.module_hooks import CALLED_BY_TORCH
from modscope_server.runtime.registry import Registered
from modscope_server.runtime.selections import Selection, shared_by
from modscope_server.runtime.sensors import root_hooks
from modscope_server.runtime.stance import keep_out
from modscope_server.runtime.watch_notes import watch_notes
from modscope_server.runtime.watch_spec import WatchSpec
from modscope_server.runtime.watch_states import Changes
from modscope_server.runtime.watched_hooks import WatchedHooks

__all__ = ["HookManager", "HookState", "Watch"]


class Watch:
    """A subscription and what it selects."""

    owner = "watch"

    def __init__(
        self,
        spec: WatchSpec,
        subscription: Subscription,
        registered: Registered,
        insight: Insight,
        selection: Selection,
    ) -> None:
        self.selection = selection
        self.kinds, self.form, self.window = selection.kinds, selection.form, selection.window
        self.publish = selection.publish
        self.subscription = subscription
        subscription.skipped = lambda: self.window.skipped
        self.registered = registered
        self.taps: list[ModuleTap] = []
        self.eager = EagerUse(self.window.wants_step)
        self.hooked = WatchedHooks(
            registered, spec, owner=self.owner, watch_id=subscription.id, use=self.eager, insight=insight
        )


class _Observer(Watch):
    """A watch of the server itself, which takes each draft at once and queues none."""

    owner = "break"


class HookManager:
    """Puts taps on modules for the watches that want them, and takes them off with the last one.

    Args:
        watches: how many watches there may be at once.
        events: bound of a watch's queue in events.
        size: bound of the tensors in a watch's queue, in bytes.
        total: bound of the tensors in all queues together, in bytes.
        block_ms: how long a watch may make each step wait; 0 lets none.
    """

    def __init__(
        self, *, watches: int, events: int, size: int, total: int = 1 << 62, block_ms: float = 0.0
    ) -> None:
        self._most = watches
        self._events = events
        self._size = size
        self._block_ms = block_ms
        self._queues = Queues(total)
        self._mutex = threading.Lock()
        self._numbers = itertools.count(1)
        self._watches: dict[str, Watch] = {}
        self._taps: dict[tuple[str, int], ModuleTap] = {}
        self._selections: dict[Hashable, Selection] = {}
        self.pack: Callable[[Draft], Item] | None = None
        """Packs what subscribers are sent; None where all of them are of this process."""
        self.boundary_events = BoundaryEvents()
        """What is told beside the hooks of modules; it needs to be connected to a loop."""
        self.step_ends = StepEnds()
        """What of devices is fetched at the ends of iterations."""
        self.insight = Insight()
        """What is known of the models beside; of more use where something follows the loop."""

    def watch(
        self, registered: Registered, spec: WatchSpec, take: Callable[[Draft], None] | None = None
    ) -> Watch:
        """Arm a watch: from here on every event is queued or counted as dropped.

        `take`, where it is given, gets each draft instead, on the thread of the hook. Call it at a safe
        point, so that the first step is seen whole. Raises NoMatch, BadGlobError, LimitExceeded.
        """
        self._check_block(spec)
        chosen = []
        if any(kind != METRIC for kind in spec.kinds):
            chosen = some_modules(registered.root, registered.name, spec.glob, spec.type)
        hooked = chosen if any(kind in KINDS for kind in spec.kinds) else []
        with self._mutex:
            if len(self._watches) >= self._most:
                raise LimitExceeded(
                    f"{self._most} watches are open already",
                    hint="end one, or raise limits.streams in attach",
                )
            subscription = Subscription(
                _watch_id(next(self._numbers), spec),
                overflow=spec.overflow,
                events=min(spec.queue, self._events) if spec.queue else self._events,
                size=self._size,
                queues=self._queues,
                block=spec.block_ms / 1000,
                keep=spec.keep,
            )
            subscription.on_overflow = partial(self.stop, subscription.id)
            shared = None if take is not None else shared_by(spec, [located.module for located in hooked])
            selection = self._selections.get(shared) or Selection(spec, self._queues, take, self.pack)
            kind = Watch if take is None else _Observer
            watch = kind(spec, subscription, registered, self.insight, selection)
            subscription.step = registered.step_count()
            subscription.paths = tuple(located.path for located in chosen)
            subscription.notes = watch_notes(registered.root, hooked)
            subscription.notes += self.boundary_events.add(watch, registered, chosen)
            self._watches[subscription.id] = watch
            if shared is not None:
                self._selections[shared] = selection
            self.step_ends.count(1)
            if spec.payload == "tensor":
                COPY_MEMORY.count(1)
        try:
            self._put_on(watch, registered, hooked)
        except BaseException:
            self.stop(subscription.id)
            subscription.close()
            raise
        return watch

    def _put_on(self, watch: Watch, registered: Registered, hooked: Sequence[Located]) -> None:
        subscription, selection = watch.subscription, watch.selection
        with self._mutex:
            selection.fan.add(subscription)
            for located in hooked:
                scripted = isinstance(located.module, torch.jit.ScriptModule)
                tap = None if scripted else self._tap(registered, located)
                watch.hooked.add(located, tap, selection)
                if tap is not None:
                    watch.taps.append(tap)
                    if selection not in tap.sinks:
                        tap.set_sinks((*tap.sinks, selection))
        keep_out(*CALLED_BY_TORCH)
        if watch.hooked.paths:
            self.insight.begin(watch.eager)
            subscription.notes += self.insight.notes(registered.root, watch.hooked.paths, "watch")

    def stop(self, watch_id: str, reason: str = "stopped") -> Counters:
        """End a watch: its hooks are gone when this returns. A watch that has ended is no error."""
        with self._mutex:
            watch = self._watches.pop(watch_id, None)
            if watch is None:
                return Counters(0, 0, 0)
            subscription = watch.subscription
            subscription.end(reason)
            self.boundary_events.remove(watch)
            selection = watch.selection
            selection.fan.remove(subscription)
            if not len(selection.fan):
                self._selections = {key: one for key, one in self._selections.items() if one is not selection}
                for tap in watch.taps:
                    tap.set_sinks(sink for sink in tap.sinks if sink is not selection)
            self._taps = {key: tap for key, tap in self._taps.items() if tap.sinks}
        self.insight.end(watch.eager)
        self.step_ends.count(-1)
        if watch.form.payload == "tensor":
            COPY_MEMORY.count(-1)
        counters = subscription.counters()
        if subscription.reader is None and (subscription.is_abandoned or subscription.finished):
            subscription.close()
        return counters

    def find(self, registered: Registered, watch_id: str) -> Watch:
        """A watch of a model that somebody reads, or may resume. Raises UnknownWatch."""
        watch = self._watches.get(watch_id)
        if watch is None or watch.registered.root is not registered.root or isinstance(watch, _Observer):
            raise UnknownWatch(
                f"there is no watch {watch_id!r} of {registered.name}: it has ended, or there was none",
                hint="make a new watch; one with keep= outlives its reader for so long",
                field="resume",
            )
        return watch

    def stop_all(self, reason: str) -> None:
        """End every watch."""
        for watch_id in list(self._watches):
            self.stop(watch_id, reason)

    def abandon(self) -> None:
        """Have no hook do anything any more, taking no lock: in a forked child one may be held for ever."""
        for tap in list(self._taps.values()):
            tap.abandon()

    def listing(self, registered: Registered) -> list[HookState]:
        """The hooks on a model: the safe point's, then the watches' in PyTorch's module order."""
        return [*_safe_point_hooks(registered.root), *merged(self.states(registered))]

    def states(self, registered: Registered, watch: Watch | None = None) -> list[HookState]:
        """The hooks of one watch, or of all on a model."""
        watches = list(self._watches.values()) if watch is None else [watch]
        mine = [one for one in watches if one.registered.root is registered.root]
        step = registered.step_count()
        return [
            state
            for one in mine
            for state in (
                *one.hooked.states(),
                *self.boundary_events.states(one, one.subscription.id, step),
            )
        ]

    def changes(self, watch: Watch, at_most: float) -> Changes:
        """What tells of the hooks of a watch as they change; looks every `at_most` seconds in any case."""

        def look() -> list[HookState]:
            self.insight.look()
            return self.states(watch.registered, watch)

        return Changes(look, at_most, watches=lambda: len(self._watches))

    def _check_block(self, spec: WatchSpec) -> None:
        if spec.block_ms > self._block_ms:
            allowed = f"up to {self._block_ms:g} ms in a step" if self._block_ms else "nobody do that"
            raise BadRequest(
                f"it would make training wait {spec.block_ms:g} ms in a step; this server lets {allowed}",
                hint="raise limits.block_ms in attach, or choose another overflow",
                field="block_ms",
            )

    def _tap(self, registered: Registered, located: Located) -> ModuleTap:
        key = (registered.name, id(located.module))
        tap = self._taps.get(key)
        if tap is None or tap.module() is not located.module:
            tap = ModuleTap(
                located.module, registered.name, located.path, located.raw_path, registered.step_count
            )
            self._taps[key] = tap
        return tap


def _watch_id(number: int, spec: WatchSpec) -> str:
    """Of a kept watch no other server gives the same: who comes back to a job that began anew finds none."""
    return f"watch-{number}-{secrets.token_hex(4)}" if spec.keep else f"watch-{number}"


def _safe_point_hooks(root: nn.Module) -> list[HookState]:
    return [
        HookState("", kind, "safe point", (), hook.fired, None, state="fired" if hook.fired else "armed")
        for kind, hook in root_hooks(root)
    ]
