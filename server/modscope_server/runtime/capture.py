"""The hooks that observe one module: what they see becomes drafts for the subscribers.

A tap puts at most one pre- and one post-hook on its module, whatever is watched and by how many.
Gradients of outputs come from tensor hooks on the outputs; the gradient of an input comes from an
identity view of the input that the pre-hook hands on, so that it is this module's share alone and
an in-place operation after the module stays legal (docs/decisions/0005).
"""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from modscope_server.inspection.values import named_tensors
from modscope_server.runtime.bus import Draft, DraftValue
from modscope_server.runtime.captured import Form, captured
from modscope_server.runtime.gradients import Expected, GradientCollector, identity_views
from modscope_server.runtime.sensors import in_backward
from modscope_server.runtime.uncopied import Uncopied
from modscope_server.runtime.watch_spec import KINDS
from modscope_server.runtime.windows import WatchWindow

__all__ = ["KINDS", "ModuleTap", "Sink", "let_observers_follow"]

_MOST_FAULTS = 3
_LOG = logging.getLogger("modscope_server")
_IN_PLACE = "in-place module: the gradient of its input cannot be had"


class Sink(Protocol):
    """A subscriber as a tap sees it."""

    kinds: frozenset[str]
    form: Form
    window: WatchWindow

    def publish(self, draft: Draft) -> None: ...


class _Call:
    """One forward of the module, from its pre-hook to its backward."""

    __slots__ = ("index", "inputs", "recompute", "step")

    def __init__(self, index: int, step: int, recompute: bool) -> None:
        self.index = index
        self.step = step
        self.recompute = recompute
        self.inputs: Sequence[tuple[str, torch.Tensor | None, int]] = ()
        """Key, identity view and its version, of each tensor given to forward; held until forward returns."""


class _Hook(Uncopied):
    """A callable on the module: harmless when copied or pickled, and it never raises."""

    __slots__ = ("_act", "_tap")

    def __init__(self, tap: ModuleTap, act: Callable[[ModuleTap, tuple[Any, ...]], Any]) -> None:
        self._tap = weakref.ref(tap)
        self._act = act

    def __call__(self, module: nn.Module, *rest: Any) -> Any:
        if torch.compiler.is_compiling():
            return None
        tap = self._tap()
        if tap is None or tap.module() is not module or not tap.sinks:
            return None
        try:
            return self._act(tap, rest)
        except Exception as error:
            tap.fault(error)
            return None


def let_observers_follow(hooks: dict[int, Any]) -> None:
    """Move taps behind the other hooks of a module, so that they see what these give; at a write point."""
    for key in [key for key, hook in hooks.items() if isinstance(hook, _Hook)]:
        hooks[key] = hooks.pop(key)


class ModuleTap:
    """All that is observed at one module.

    `sinks` is replaced, never mutated: a hook that runs keeps the tuple it has seen.
    """

    def __init__(
        self, module: nn.Module, model: str, path: str, raw_path: str, step: Callable[[], int]
    ) -> None:
        self.module = weakref.ref(module)
        self.model = model
        self.path = path
        self.raw_path = raw_path
        self.type = type(module).__name__
        self.sinks: tuple[Sink, ...] = ()
        self._serving: dict[str, tuple[Sink, ...]] = dict.fromkeys(KINDS, ())
        self.fired = dict.fromkeys(KINDS, 0)
        self.last_step: dict[str, int] = {}
        self.calls = 0
        self.calls_with_grad = 0
        """Of these, in grad mode."""
        self.differentiable = 0
        """Of these, with an output that requires grad; counted while gradients are watched."""
        self.phases_seen: frozenset[str] = frozenset()
        """"training", "evaluation", or both."""
        self.called_at: int | None = None
        """step_count at the last call."""
        self.raised = 0
        """Calls that an exception has ended."""
        self._step = step
        self._in_place = bool(module.__dict__.get("inplace"))
        self._handles: dict[str, RemovableHandle] = {}
        self._calls: list[_Call] = []
        self._counted = (-1, 0)
        self._recomputed = (-1, 0)
        self.faults = 0

    def set_sinks(self, sinks: Iterable[Sink]) -> None:
        """Serve these subscribers: hooks that are needed come, hooks that are not go."""
        self.sinks = tuple(sinks)
        kinds = set().union(*(sink.kinds for sink in self.sinks))
        backward = bool(kinds & {"backward_pre", "backward"})
        self._serving = {kind: tuple(sink for sink in self.sinks if kind in sink.kinds) for kind in KINDS}
        self._keep("pre", "forward_pre" in kinds or backward)
        self._keep("post", "forward" in kinds or backward)

    def fault(self, error: Exception) -> None:
        """Count a fault of ours; after three the tap serves nobody any more."""
        self.faults += 1
        _LOG.error("a hook of modscope failed at %r; training goes on", self.path, exc_info=error)
        if self.faults >= _MOST_FAULTS:
            self.set_sinks(())

    def _keep(self, place: str, wanted: bool) -> None:
        module = self.module()
        if wanted and place not in self._handles and module is not None:
            if place == "pre":
                hook = _Hook(self, ModuleTap._before)
                self._handles[place] = module.register_forward_pre_hook(hook, with_kwargs=True)
            else:
                hook = _Hook(self, ModuleTap._after)
                self._handles[place] = module.register_forward_hook(hook, with_kwargs=True)
        elif not wanted and place in self._handles:
            self._handles.pop(place).remove()

    def _before(self, rest: tuple[Any, ...]) -> Any:
        args, kwargs = rest if len(rest) == 2 else (rest[0], {})
        call = self._begin()
        self._calls.append(call)
        sinks = self._wanting("forward_pre", call)
        if sinks:
            self._publish("forward_pre", call, sinks, "input", _arguments(args, kwargs))
        if not torch.is_grad_enabled() or not self._wants_gradients(call):
            return None
        inputs = _arguments(args, kwargs)
        views: dict[int, torch.Tensor] = {}
        if not self._in_place:
            args, kwargs = identity_views(args, views), identity_views(kwargs, views)
        found = [(key, views.get(id(tensor))) for key, tensor in inputs]
        call.inputs = [(key, view, 0 if view is None else view._version) for key, view in found]
        if not views:
            return None
        return (args, kwargs) if len(rest) == 2 else args

    def _after(self, rest: tuple[Any, ...]) -> None:
        output = rest[-1]
        call = self._calls.pop() if "pre" in self._handles and self._calls else self._begin()
        sinks = self._wanting("forward", call)
        if sinks:
            self._publish("forward", call, sinks, "output", named_tensors(output))
        if self._wants_gradients(call) and torch.is_grad_enabled():
            outputs = named_tensors(output)
            self._await_gradients("backward_pre", call, outputs, ())
            self._await_gradients("backward", call, outputs, call.inputs)
        call.inputs = ()

    def _await_gradients(
        self,
        kind: str,
        call: _Call,
        outputs: Sequence[tuple[str, torch.Tensor | None]],
        inputs: Sequence[tuple[str, torch.Tensor | None, int]],
    ) -> None:
        """Have the gradients of a call's outputs, and of its inputs, published as one event."""
        sinks = self._wanting(kind, call)
        if not sinks or not any(tensor is not None and tensor.requires_grad for _, tensor in outputs):
            return
        awaited: list[tuple[Expected, torch.Tensor | None]] = []
        for key, view, version in inputs:
            spoiled = self._in_place or (view is not None and view._version != version)
            awaited.append(
                (Expected("grad_input", key, _IN_PLACE if spoiled else ""), None if spoiled else view)
            )
        for key, tensor in outputs:
            differentiable = tensor is not None and tensor.requires_grad
            awaited.append((Expected("grad_output", key), tensor if differentiable else None))
        forms = {sink.form for sink in sinks}
        expected = [what for what, _ in awaited]
        tap = weakref.ref(self)

        def take(what: Expected, gradient: torch.Tensor) -> Any:
            living = tap()
            return None if living is None else living._guarded(captured, what.role, what.key, gradient, forms)

        def emit(values: Sequence[Any]) -> None:
            living = tap()
            if living is not None:
                found = [
                    value or captured(what.role, what.key, None, forms, what.note)
                    for what, value in zip(expected, values, strict=True)
                ]
                living._guarded(living._send, kind, call, living._wanting(kind, call), found)

        collector = GradientCollector(expected, take, emit)
        for index, (_, tensor) in enumerate(awaited):
            if tensor is not None:
                collector.watch(index, tensor)

    def _publish(
        self,
        kind: str,
        call: _Call,
        sinks: Sequence[Sink],
        role: str,
        values: Sequence[tuple[str, torch.Tensor | None]],
    ) -> None:
        forms = {sink.form for sink in sinks}
        self._send(kind, call, sinks, [captured(role, key, tensor, forms) for key, tensor in values])

    def _send(
        self, kind: str, call: _Call, sinks: Sequence[Sink], found: Sequence[dict[Form, DraftValue]]
    ) -> None:
        self.fired[kind] += 1
        self.last_step[kind] = call.step
        moment = time.time()
        drafts: dict[Form, Draft] = {}
        for sink in sinks:
            form = sink.form
            if form not in drafts:
                values = tuple([value[form] for value in found if form in value])
                drafts[form] = Draft(
                    call.step,
                    self.model,
                    self.path,
                    self.raw_path,
                    self.type,
                    kind,
                    call.index,
                    call.recompute,
                    moment,
                    values,
                )
            sink.publish(drafts[form])

    def _guarded(self, act: Callable[..., Any], *args: Any) -> Any:
        try:
            return act(*args)
        except Exception as error:
            self.fault(error)
            return None

    def _begin(self) -> _Call:
        """Number this call within its step."""
        step, recompute = self._step(), in_backward()
        counted, index = self._recomputed if recompute else self._counted
        if counted != step:
            index = 0
            self._calls.clear()
        if recompute:
            self._recomputed = (step, index + 1)
        else:
            self._counted = (step, index + 1)
        return _Call(index, step, recompute)

    def _wanting(self, kind: str, call: _Call) -> list[Sink]:
        """The subscribers of this kind of hook that want this step."""
        sinks = self._serving[kind]
        return [sink for sink in sinks if sink.window.wants_step(call.step)] if sinks else []

    def _wants_gradients(self, call: _Call) -> bool:
        serving = self._serving
        if not serving["backward_pre"] and not serving["backward"]:
            return False
        return bool(self._wanting("backward_pre", call) or self._wanting("backward", call))


def _arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[tuple[str, torch.Tensor | None]]:
    return [*named_tensors(args), *(named_tensors(kwargs) if kwargs else ())]
