"""HookService: watches as streams of events, interventions, and the hooks that stand on a model."""

from __future__ import annotations

from collections.abc import Iterator

from modscope.v1 import hook_service_pb2
from modscope.wire import Frame
from modscope_server.errors import BadRequest
from modscope_server.services import convert, interventions
from modscope_server.services.auth import changes
from modscope_server.services.call import Call
from modscope_server.services.filling import added
from modscope_server.services.serving import Serving
from modscope_server.services.uploads import Uploads
from modscope_server.services.watch_keeping import Keeping
from modscope_server.services.watch_stream import Sent, stream

__all__ = ["HookServicer"]


class HookServicer:
    """Translates HookService's calls."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self._keeping = Keeping(serving)

    def watch(self, request: hook_service_pb2.WatchRequest, call: Call) -> Iterator[Sent]:
        """Arm a watch, or resume one, then stream what it sees until it ends or its reader goes."""
        registered = self._serving.registry.get(request.model)
        if request.resume:
            after = request.resume_after if request.HasField("resume_after") else None
            reading = self._keeping.resume(registered, request.resume, after)
        else:
            reading = self._keeping.arm(registered, request, call)
        try:
            call.when_gone(reading.reader.give_up)
            yield from stream(
                reading.watch.subscription,
                reading.reader,
                notes=reading.notes,
                heartbeat=self._serving.config.limits.heartbeat,
                step=registered.step_count,
                changes=self._serving.hooks.changes(reading.watch, self._serving.config.limits.heartbeat),
            )
        finally:
            self._keeping.leave(reading, call)

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
        response = hook_service_pb2.ListHooksResponse()
        for state in states:
            convert.hook_info(state, added(response.hooks, convert.HOOK))
        return response

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
