"""What is observed at one module: what its hooks see becomes drafts for the subscribers.

A tap puts at most one pre- and one post-hook on its module, whatever is watched and by how many.
Gradients of outputs come from tensor hooks on the outputs; the gradient of an input comes from an
identity view of the input that the pre-hook hands on, so that it is this module's share alone and
an in-place operation after the module stays legal (docs/decisions/0005).
"""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Callable, Collection, Iterable, Sequence
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from modscope_server.inspection.values import named_tensors
from modscope_server.runtime.audience import NOBODY, Audience, Counted, Firings, Listeners, Sink
from modscope_server.runtime.calls import Call, CallNumbers, OpenCalls
from modscope_server.runtime.captured import captured, plain_value_in, value_in
from modscope_server.runtime.drafts import Draft, DraftValue
from modscope_server.runtime.gradients import Expected, GradientCollector, awaited, identity_views
from modscope_server.runtime.module_hooks import AfterCall, BeforeCall
from modscope_server.runtime.watch_spec import KINDS

__all__ = ["KINDS", "MOST_FAULTS", "ModuleTap", "Sink"]

MOST_FAULTS = 3
"""Of modscope's own; then a tap serves nobody any more."""
_LOG = logging.getLogger("modscope_server")
_NO_BACKWARD = -1
_STOPS_EARLY = "_StopRecomputationError"
"""What torch.utils.checkpoint raises through a recomputed forward whose rest is not needed."""
_backward_id = torch._C._current_graph_task_id
_grad_enabled = torch.is_grad_enabled


class ModuleTap:
    """All that is observed at one module.

    `sinks` is replaced, never mutated: a hook that runs keeps the audience that it has seen. Its hooks may
    run on several threads at once.
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
        self.calls = 0
        self.calls_with_grad = 0
        """Of these, in grad mode."""
        self.differentiable = 0
        """Of these, with an output that requires grad; counted while gradients are watched."""
        self.differentiable_at: int | None = None
        """step_count at the first of them."""
        self.called_at: int | None = None
        """step_count at the last call."""
        self.unseen = ""
        """Why a backward hook does not see all gradients; empty where it does."""
        self.raised = 0
        """Calls that an exception has ended."""
        self.faults = 0
        """Faults of modscope's own; after three nobody is served any more."""
        self._trained = False
        self._evaluated = False
        self._audience = NOBODY
        self._counted: Counted = {}
        self.step = step
        self._numbers = CallNumbers(step)
        self._open = OpenCalls()
        self._in_place = bool(module.__dict__.get("inplace"))
        self._handles: dict[str, RemovableHandle] = {}
        self._has_pre = False

    @property
    def phases_seen(self) -> frozenset[str]:
        """ "training", "evaluation", or both: in which the module was called."""
        seen = (("training", self._trained), ("evaluation", self._evaluated))
        return frozenset(phase for phase, was_seen in seen if was_seen)

    def firings(self, sink: Sink, kind: str) -> Firings:
        """How often its hooks of that kind have fired for a subscriber, which may be about to come."""
        return self._counted.setdefault((sink, kind), Firings())

    def set_sinks(self, sinks: Iterable[Sink]) -> None:
        """Serve these subscribers: hooks that are needed come, hooks that are not go."""
        self._serve(tuple(sinks))
        audience = self._audience
        self._keep("pre", audience.needs_beginning)
        self._keep("post", bool(audience.kinds))

    def fault(self, error: Exception, *, raised: bool = False) -> None:
        """Count a fault of ours; after three the tap serves nobody any more.

        Where the module's call has `raised`, torch walks over its hooks, and none may go.
        """
        self.faults += 1
        _LOG.error("a hook of modscope failed at %r; training goes on", self.path, exc_info=error)
        if self.faults >= MOST_FAULTS:
            if raised:
                self._serve(())
            else:
                self.set_sinks(())

    def abandon(self) -> None:
        """Serve nobody any more; its hooks stay, and do nothing."""
        self._serve(())

    def _serve(self, sinks: tuple[Sink, ...]) -> None:
        # Copied first: a hook that fails serves nobody any more, while another thread may add a subscriber.
        counted = list(self._counted.items())
        self._counted = {key: firings for key, firings in counted if key[0] in sinks}
        self._audience = Audience(sinks, self._counted)
        self.sinks = sinks

    def _keep(self, place: str, wanted: bool) -> None:
        module = self.module()
        if wanted and place not in self._handles and module is not None:
            if place == "pre":
                self._handles[place] = module.register_forward_pre_hook(BeforeCall(self), with_kwargs=True)
                self._has_pre = True
            else:
                self._handles[place] = module.register_forward_hook(AfterCall(self), always_call=True)
        elif not wanted and place in self._handles:
            self._handles.pop(place).remove()
            if place == "pre":
                # What is open keeps its inputs alive, and nobody would end it.
                self._has_pre, self._open = False, OpenCalls()

    def before(self, module: nn.Module, rest: tuple[Any, ...], frame: FrameType) -> Any:
        """The module is called. Gives what goes into forward instead, None where that stays as it is."""
        args, kwargs = rest if len(rest) == 2 else (rest[0], {})
        call = self._begin(module)
        self._open.begin(call, frame)
        listeners = call.audience.kinds.get("forward_pre")
        if listeners is not None:
            self._publish("forward_pre", call, listeners, "input", _arguments(args, kwargs))
        if call.left_out is not NOBODY:
            call.left_out.leave_out("forward_pre")
        if "backward" not in call.audience.kinds or not _grad_enabled():
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

    def tell(self, module: nn.Module, output: Any) -> bool:
        """What `after` does, for most watches and most modules: one value, and nothing before or after it.

        It has a way of its own because it runs between a training loop's own operations, when nothing of
        ours is in the processor's caches: there each call of a function costs much. Gives whether it was so.
        """
        listeners = self._audience.simple
        if listeners is None or type(output) is not torch.Tensor:
            return False
        step, index, recompute, _ = self._number(module)
        value = plain_value_in(listeners.only, "output", "", output)  # type: ignore[arg-type]
        whose = self.model, self.path, self.raw_path, self.type
        draft = Draft(step, *whose, "forward", index, recompute, time.time(), (value,))
        for firings in listeners.firings:
            firings.count += 1
            firings.last_step = step
        for sink in listeners.sinks:
            sink.publish(draft)
        return True

    def after(self, module: nn.Module, output: Any, frame: FrameType) -> None:
        """The module has given `output`."""
        call = self._open.end((id(frame),)) if self._has_pre else None
        if call is None:
            call = self._begin(module)
        listeners = call.audience.kinds.get("forward")
        if listeners is not None:
            self._publish("forward", call, listeners, "output", named_tensors(output))
        if call.left_out is not NOBODY:
            call.left_out.leave_out("forward")
        if self._audience.gradients and _grad_enabled():
            self._await_gradients(call, named_tensors(output))
        call.inputs = ()

    def raised_in(
        self, module: nn.Module, output: Any, error: BaseException | None, frames: Collection[int]
    ) -> None:
        """The call of the module has raised; `output` is there where a hook did so after forward."""
        call = self._open.end(frames) or self._begin(module)
        name = type(error).__name__
        if call.recompute and name == _STOPS_EARLY:
            return
        self.raised += 1
        listeners = call.audience.kinds.get("forward")
        if listeners is not None:
            note = f"forward raised {name}" if output is None else f"a hook after forward raised {name}"
            self._send("forward", call, listeners, [captured("output", "", None, listeners.forms, note)])
        if call.left_out is not NOBODY:
            call.left_out.leave_out("forward")

    def _begin(self, module: nn.Module) -> Call:
        """Number a call within its step, and learn who wants it."""
        step, index, recompute, training = self._number(module)
        audience = self._audience
        if audience.is_plain:
            return Call(step, index, recompute, audience, NOBODY, audience)
        wanting, left_out = audience.of_call(step, index, training, id(self))
        return Call(step, index, recompute, wanting, left_out, audience)

    def _number(self, module: nn.Module) -> tuple[int, int, bool, bool]:
        """Count a call: its step, its number there, whether it is a recomputation, whether in training."""
        recompute = _backward_id() != _NO_BACKWARD
        step, index = self._numbers.next(recompute)
        self.calls += 1
        self.called_at = step
        training = False
        if _grad_enabled():
            self.calls_with_grad += 1
            training = module.training
        if training:
            self._trained = True
        else:
            self._evaluated = True
        return step, index, recompute, training

    def _await_gradients(self, call: Call, outputs: Sequence[tuple[str, torch.Tensor | None]]) -> None:
        """Have the gradients of a call's outputs, and of its inputs, published as events."""
        if not any(tensor is not None and tensor.requires_grad for _, tensor in outputs):
            return
        if not self.differentiable:
            self.differentiable_at = call.step
        self.differentiable += 1
        for kind in ("backward_pre", "backward"):
            listeners = call.audience.kinds.get(kind)
            if listeners is not None:
                inputs = call.inputs if kind == "backward" else ()
                self._collect(kind, call, listeners, awaited(outputs, inputs, self._in_place))
            if call.left_out is not NOBODY:
                call.left_out.leave_out(kind)

    def _collect(
        self,
        kind: str,
        call: Call,
        listeners: Listeners,
        wanted: Sequence[tuple[Expected, torch.Tensor | None]],
    ) -> None:
        expected = [what for what, _ in wanted]
        if kind == "backward":
            self.unseen = next((what.note for what in expected if what.note), "")
        tap, forms = weakref.ref(self), listeners.forms

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
                living._guarded(living._send, kind, call, listeners, found)

        collector = GradientCollector(expected, take, emit)
        for index, (_, tensor) in enumerate(wanted):
            if tensor is not None:
                collector.watch(index, tensor)

    def _publish(
        self,
        kind: str,
        call: Call,
        listeners: Listeners,
        role: str,
        values: Sequence[tuple[str, torch.Tensor | None]],
    ) -> None:
        form = listeners.only
        if form is None:
            found = [captured(role, key, tensor, listeners.forms) for key, tensor in values]
            self._send(kind, call, listeners, found)
        else:
            if len(values) == 1:
                wanted: tuple[DraftValue, ...] = (value_in(form, role, *values[0]),)
            else:
                wanted = tuple([value_in(form, role, key, tensor) for key, tensor in values])
            self._give(kind, call, listeners.sinks, wanted)
            _count(listeners, call.step)

    def _send(
        self, kind: str, call: Call, listeners: Listeners, found: Sequence[dict[Any, DraftValue]]
    ) -> None:
        for form in listeners.forms:
            sinks = [sink for sink in listeners.sinks if sink.form == form]
            self._give(kind, call, sinks, tuple([value[form] for value in found]))
        _count(listeners, call.step)

    def _give(self, kind: str, call: Call, sinks: Sequence[Sink], values: tuple[DraftValue, ...]) -> None:
        draft = Draft(
            call.step,
            self.model,
            self.path,
            self.raw_path,
            self.type,
            kind,
            call.index,
            call.recompute,
            time.time(),
            values,
        )
        is_as_then = call.asked is self._audience
        for sink in sinks:
            if is_as_then or sink in self.sinks:
                sink.publish(draft)

    def _guarded(self, act: Callable[..., Any], *args: Any) -> Any:
        try:
            return act(*args)
        except Exception as error:
            self.fault(error)
            return None


def _count(listeners: Listeners, step: int) -> None:
    """A hook has fired for them."""
    for firings in listeners.firings:
        firings.count += 1
        firings.last_step = step
    for rate in listeners.rates:
        rate.count(True)


def _arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[tuple[str, torch.Tensor | None]]:
    return [*named_tensors(args), *(named_tensors(kwargs) if kwargs else ())]
