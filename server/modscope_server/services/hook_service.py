"""HookService: watches as streams of events, interventions, and the hooks that stand on a model."""

from __future__ import annotations

import time
from collections.abc import Iterator

from modscope.v1 import hook_service_pb2
from modscope.wire import Encoded, Frame
from modscope_server.errors import BadRequest
from modscope_server.runtime.bus import Subscription
from modscope_server.services import convert, interventions, watches
from modscope_server.services.auth import changes
from modscope_server.services.call import Call
from modscope_server.services.events import messages
from modscope_server.services.serving import Serving
from modscope_server.services.uploads import Uploads

__all__ = ["HookServicer"]

_Response = hook_service_pb2.WatchResponse


class HookServicer:
    """Translates HookService's calls."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    def watch(
        self, request: hook_service_pb2.WatchRequest, call: Call
    ) -> Iterator[Frame[_Response] | Frame[Encoded]]:
        """Arm a watch, then stream what it sees until it ends or its reader goes."""
        hooks = self._serving.hooks
        registered = self._serving.registry.get(request.model)
        spec = watches.spec(request)
        subscription = self._serving.run(call, lambda: hooks.watch(registered, spec)).value.subscription
        try:
            call.when_gone(lambda: subscription.end("the reader left"))
            yield Frame(_created(subscription))
            heartbeat = self._serving.config.limits.heartbeat
            while not subscription.finished:
                batch = subscription.take(heartbeat)
                if call.is_set():
                    return
                if batch.drafts:
                    yield from messages(batch)
                    subscription.linger()
                elif not subscription.finished:
                    yield Frame(_heartbeat(subscription, registered.step_count()))
            yield Frame(_ended(subscription))
        finally:
            hooks.stop(subscription.id)

    def stop_watch(
        self, request: hook_service_pb2.StopWatchRequest, call: Call
    ) -> hook_service_pb2.StopWatchResponse:
        """End a watch, whoever reads it."""
        counters = self._serving.hooks.stop(request.watch_id)
        return hook_service_pb2.StopWatchResponse(published=counters.published, dropped=counters.dropped)

    def list_hooks(
        self, request: hook_service_pb2.ListHooksRequest, call: Call
    ) -> hook_service_pb2.ListHooksResponse:
        """The hooks of ours on a model."""
        registered = self._serving.registry.get(request.model)
        states = self._serving.hooks.listing(registered)
        states += self._serving.interventions.hook_states(registered)
        return hook_service_pb2.ListHooksResponse(hooks=map(convert.hook_info, states))

    @changes
    def intervene(
        self, requests: Iterator[Frame[hook_service_pb2.InterveneRequest]], call: Call
    ) -> hook_service_pb2.InterveneResponse:
        """Take in what is asked for, then put its hooks on at a write point."""
        with Uploads(self._serving.budget) as uploads:
            opening = next(requests, Frame(hook_service_pb2.InterveneRequest()))
            first = opening.header
            registered = self._serving.registry.get(first.model)
            seconds = interventions.lease_seconds(first)
            interventions.announce(first.spec, uploads)
            uploads.feed(opening.data)
            for frame in requests:
                uploads.feed(frame.data)
            spec = interventions.spec(first.spec, uploads.finish())
        made = self._serving.intervene(call, registered, spec, seconds)
        return hook_service_pb2.InterveneResponse(
            intervention=interventions.intervention(made.value), notes=made.notes
        )

    def list_interventions(
        self, request: hook_service_pb2.ListInterventionsRequest, call: Call
    ) -> hook_service_pb2.ListInterventionsResponse:
        """Interventions, and what they do."""
        registered = self._serving.registry.get(request.model)
        states = self._serving.interventions.listing(registered, request.ids)
        return hook_service_pb2.ListInterventionsResponse(
            interventions=map(interventions.intervention, states)
        )

    @changes
    def remove_interventions(
        self, request: hook_service_pb2.RemoveInterventionsRequest, call: Call
    ) -> hook_service_pb2.RemoveInterventionsResponse:
        """End interventions."""
        registered = self._serving.registry.get(request.model)
        if request.all == bool(request.ids):
            raise BadRequest("which ones?", hint="give ids, or all, and not both", field="ids")
        states = self._serving.interventions.remove(registered, request.ids, call.who, call.caller)
        return hook_service_pb2.RemoveInterventionsResponse(
            interventions=map(interventions.intervention, states)
        )


def _created(subscription: Subscription) -> _Response:
    return _Response(
        created=hook_service_pb2.WatchCreated(
            watch_id=subscription.id,
            paths=subscription.paths,
            step=subscription.step,
            notes=subscription.notes,
        )
    )


def _heartbeat(subscription: Subscription, step: int) -> _Response:
    counters = subscription.counters()
    return _Response(
        heartbeat=hook_service_pb2.WatchHeartbeat(
            step=step,
            published=counters.published,
            dropped=counters.dropped,
            queued=counters.queued,
            time=convert.timestamp(time.time()),
        )
    )


def _ended(subscription: Subscription) -> _Response:
    counters = subscription.counters()
    return _Response(
        ended=hook_service_pb2.WatchEnded(
            reason=subscription.ended or "", published=counters.published, dropped=counters.dropped
        )
    )
