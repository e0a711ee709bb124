"""A server whose watches send just what the test says: states, ends and breaks that are hard to provoke."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import grpc

from modscope.v1 import event_pb2, hook_service_pb2, model_pb2, model_service_pb2
from modscope_client import rpcs
from modscope_client.channel import Endpoint
from tests.client.fake_server import Hold, serving

__all__ = ["CREATED", "BreakOff", "Response", "Watches", "event", "hook"]

Response = hook_service_pb2.WatchResponse
CREATED = Response(created=hook_service_pb2.WatchCreated(watch_id="watch-7", paths=["a", "b"], step=2))


class BreakOff(Exception):
    """Ends a stream with this status, as no server of ours ends one of its own accord."""

    def __init__(self, code: grpc.StatusCode, text: str = "the line is dead") -> None:
        super().__init__(text)
        self.code = code
        self.text = text


class Watches:
    """Serves one script after the other, each to one call of Watch, and keeps what it was asked."""

    def __init__(self, *scripts: Sequence[Response | BreakOff | Hold]) -> None:
        self._scripts = list(scripts)
        self.asked: list[hook_service_pb2.WatchRequest] = []
        self.stopped: list[str] = []
        self.on_stop: Callable[[], object] = list
        """Called where one is stopped."""
        self.hooks: list[hook_service_pb2.HookInfo] = []
        """What is listed, as long as nothing is stopped."""

    @contextmanager
    def served(self) -> Iterator[Endpoint]:
        """The endpoint at which they are, beside a model of the name "m"."""
        behaviours: dict[rpcs.Rpc[Any, Any], Any] = {
            rpcs.WATCH: self._watch,
            rpcs.STOP_WATCH: self._stop,
            rpcs.GET_MODEL: _model,
            rpcs.LIST_HOOKS: self._list,
        }
        with serving(behaviours) as endpoint:
            yield endpoint

    def _watch(self, request: bytes, context: grpc.ServicerContext) -> Iterator[Response]:
        self.asked.append(hook_service_pb2.WatchRequest.FromString(request))
        for part in self._scripts.pop(0):
            if isinstance(part, BreakOff):
                context.abort(part.code, part.text)
            elif isinstance(part, Hold):
                part.wait(context)
            else:
                yield part

    def _stop(self, request: bytes, context: Any) -> hook_service_pb2.StopWatchResponse:
        self.stopped.append(hook_service_pb2.StopWatchRequest.FromString(request).watch_id)
        self.on_stop()
        return hook_service_pb2.StopWatchResponse()

    def _list(self, request: bytes, context: Any) -> hook_service_pb2.ListHooksResponse:
        return hook_service_pb2.ListHooksResponse(hooks=[] if self.stopped else self.hooks)


def _model(request: bytes, context: Any) -> model_service_pb2.GetModelResponse:
    return model_service_pb2.GetModelResponse(model=model_pb2.ModelInfo(name="m"))


def event(seq: int, dropped: int = 0) -> event_pb2.Event:
    """A forward of module a."""
    return event_pb2.Event(
        seq=seq, step=seq, model="m", path="a", hook=event_pb2.HOOK_KIND_FORWARD, dropped=dropped
    )


def hook(path: str, state: str, reason: str = "", **more: Any) -> hook_service_pb2.HookInfo:
    """A forward hook in a state."""
    return hook_service_pb2.HookInfo(
        path=path,
        kind=event_pb2.HOOK_KIND_FORWARD,
        owner="watch",
        watch_ids=["watch-7"],
        state=hook_service_pb2.HookState.Value(f"HOOK_STATE_{state.upper()}"),
        reason=reason,
        **more,
    )
