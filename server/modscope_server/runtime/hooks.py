"""Watches: who observes which modules. Hooks exist only while somebody watches."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from modscope_server.errors import LimitExceeded
from modscope_server.inspection.selection import some_modules
from modscope_server.inspection.structure import Located
from modscope_server.runtime.bus import Counters, Draft, Subscription
from modscope_server.runtime.capture import KINDS, ModuleTap
from modscope_server.runtime.captured import Form
from modscope_server.runtime.registry import Registered
from modscope_server.runtime.sensors import root_hooks
from modscope_server.runtime.watch_spec import WatchSpec
from modscope_server.runtime.windows import WatchWindow

__all__ = ["HookManager", "HookState", "Watch"]


@dataclass(frozen=True)
class HookState:
    """A hook that modscope has put on a module."""

    path: str
    kind: str
    owner: str
    """"watch", "break", "intervention" or "safe point"."""
    watch_ids: tuple[str, ...]
    fired: int
    last_step: int | None
    intervention_id: str = ""
    """Of an intervention: its id."""


class Watch:
    """A subscription and what it selects: the sink that taps publish to."""

    owner = "watch"

    def __init__(self, spec: WatchSpec, subscription: Subscription, registered: Registered) -> None:
        self.kinds = frozenset(spec.kinds)
        self.form = Form(spec.payload, spec.sample, spec.index, spec.dtype)
        self.window = WatchWindow(spec)
        self.subscription = subscription
        self.registered = registered
        self.taps: list[ModuleTap] = []

    def publish(self, draft: Draft) -> None:
        """Queue a draft for the subscriber."""
        self.subscription.publish(draft)


class _Observer(Watch):
    """A watch of the server itself, which takes each draft at once and queues none."""

    owner = "break"

    def __init__(
        self,
        spec: WatchSpec,
        subscription: Subscription,
        registered: Registered,
        take: Callable[[Draft], None],
    ) -> None:
        super().__init__(spec, subscription, registered)
        self._take = take

    def publish(self, draft: Draft) -> None:
        self._take(draft)


class HookManager:
    """Puts taps on modules for the watches that want them, and takes them off with the last one.

    Args:
        watches: how many watches there may be at once.
        events: bound of a watch's queue in events.
        size: bound of the tensors in a watch's queue, in bytes.
    """

    def __init__(self, *, watches: int, events: int, size: int) -> None:
        self._most = watches
        self._events = events
        self._size = size
        self._mutex = threading.Lock()
        self._numbers = itertools.count(1)
        self._watches: dict[str, Watch] = {}
        self._taps: dict[tuple[str, int], ModuleTap] = {}

    def watch(
        self, registered: Registered, spec: WatchSpec, take: Callable[[Draft], None] | None = None
    ) -> Watch:
        """Arm a watch: from here on every event is queued or counted as dropped.

        `take`, where it is given, gets each draft instead, on the thread of the hook. Call it at a safe
        point, so that the first step is seen whole. Raises NoMatch, BadGlobError, LimitExceeded.
        """
        chosen = some_modules(registered.root, registered.name, spec.glob, spec.type)
        with self._mutex:
            if len(self._watches) >= self._most:
                raise LimitExceeded(
                    f"{self._most} watches are open already",
                    hint="end one, or raise limits.streams in attach",
                )
            subscription = Subscription(
                f"watch-{next(self._numbers)}",
                overflow=spec.overflow,
                events=min(spec.queue, self._events) if spec.queue else self._events,
                size=self._size,
            )
            if take is None:
                watch = Watch(spec, subscription, registered)
            else:
                watch = _Observer(spec, subscription, registered, take)
            subscription.step = registered.step_count()
            subscription.paths = tuple(located.path for located in chosen)
            subscription.notes = _notes(chosen)
            self._watches[subscription.id] = watch
            for located in chosen:
                if not isinstance(located.module, torch.jit.ScriptModule):
                    tap = self._tap(registered, located)
                    watch.taps.append(tap)
                    tap.set_sinks((*tap.sinks, watch))
        return watch

    def stop(self, watch_id: str, reason: str = "stopped") -> Counters:
        """End a watch: its hooks are gone when this returns. A watch that has ended is no error."""
        with self._mutex:
            watch = self._watches.pop(watch_id, None)
            if watch is None:
                return Counters(0, 0, 0)
            watch.subscription.end(reason)
            for tap in watch.taps:
                tap.set_sinks(sink for sink in tap.sinks if sink is not watch)
            self._taps = {key: tap for key, tap in self._taps.items() if tap.sinks}
        return watch.subscription.counters()

    def stop_all(self, reason: str) -> None:
        """End every watch."""
        for watch_id in list(self._watches):
            self.stop(watch_id, reason)

    def listing(self, registered: Registered) -> list[HookState]:
        """The hooks on a model: the safe point's, then the watches' in PyTorch's module order."""
        states = _safe_point_hooks(registered.root)
        with self._mutex:
            taps = [tap for (model, _), tap in self._taps.items() if model == registered.name]
            for tap in taps:
                for kind in KINDS:
                    ids: dict[str, list[str]] = {}
                    for sink in tap.sinks:
                        if isinstance(sink, Watch) and kind in sink.kinds:
                            ids.setdefault(sink.owner, []).append(sink.subscription.id)
                    last = tap.last_step.get(kind)
                    states += [
                        HookState(tap.path, kind, owner, tuple(its), tap.fired[kind], last)
                        for owner, its in ids.items()
                    ]
        return states

    def _tap(self, registered: Registered, located: Located) -> ModuleTap:
        key = (registered.name, id(located.module))
        tap = self._taps.get(key)
        if tap is None or tap.module() is not located.module:
            tap = ModuleTap(
                located.module, registered.name, located.path, located.raw_path, registered.step_count
            )
            self._taps[key] = tap
        return tap


def _safe_point_hooks(root: nn.Module) -> list[HookState]:
    return [HookState("", kind, "safe point", (), hook.fired, None) for kind, hook in root_hooks(root)]


def _notes(chosen: list[Located]) -> tuple[str, ...]:
    scripted = [located.path for located in chosen if isinstance(located.module, torch.jit.ScriptModule)]
    if not scripted:
        return ()
    return (f"ScriptModules take no hooks, so nothing will come from: {', '.join(map(repr, scripted))}",)
