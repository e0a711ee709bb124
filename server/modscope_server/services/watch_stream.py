"""What a watch's reader is sent: first that it is armed, then events, news of hooks, counters, its end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from modscope.v1 import hook_service_pb2
from modscope.wire import Encoded, Frame
from modscope_server.errors import LimitExceeded
from modscope_server.runtime.bus import Reader, Subscription
from modscope_server.runtime.hook_states import HookState
from modscope_server.runtime.watch_states import Changes
from modscope_server.services import convert
from modscope_server.services.events import messages
from modscope_server.services.filling import added
from modscope_server.services.serving import batches

__all__ = ["Sent", "stream"]

_Response = hook_service_pb2.WatchResponse
Sent = Frame[_Response] | Frame[Encoded]
"""A message on its way."""


def stream(
    subscription: Subscription,
    reader: Reader,
    *,
    notes: Sequence[str],
    heartbeat: float,
    step: Callable[[], int],
    changes: Changes,
) -> Iterator[Sent]:
    """Everything until the watch ends or its reader goes. Raises LimitExceeded where it could not keep up.

    Counters come every `heartbeat` seconds, on a busy stream too; hooks as their state changes, and once more
    at the end.
    """
    yield Frame(_created(subscription, notes))
    due = time.monotonic() + heartbeat
    while not reader.finished:
        yield from _hooks(changes.news())
        yield from messages(reader.take(max(0.0, min(due, changes.due) - time.monotonic())))
        if time.monotonic() >= due and not reader.finished:
            due = time.monotonic() + heartbeat
            yield Frame(_beat(subscription, step()))
    if reader.is_gone:
        return
    yield from _hooks(changes.news(now=True))
    if reader.is_replaced:
        yield Frame(_ended(subscription, "another reader has resumed it"))
    elif subscription.has_overflowed:
        raise LimitExceeded(
            f"the watch has ended: {subscription.ended}, and it asked for no event to be dropped",
            hint='read faster, ask for less (every, max_rate, a narrower glob), or choose "drop_oldest"',
        )
    else:
        yield Frame(_ended(subscription, subscription.ended or ""))


def _created(subscription: Subscription, notes: Sequence[str]) -> _Response:
    return _Response(
        created=hook_service_pb2.WatchCreated(
            watch_id=subscription.id,
            paths=subscription.paths,
            step=subscription.step,
            notes=(*subscription.notes, *notes),
        )
    )


def _hooks(states: Sequence[HookState]) -> Iterator[Frame[_Response]]:
    for batch in batches(states) if states else ():
        response = _Response()
        for state in batch:
            convert.hook_info(state, added(response.hooks, convert.HOOK))
        yield Frame(response)


def _beat(subscription: Subscription, step: int) -> _Response:
    counters = subscription.counters()
    return _Response(
        heartbeat=hook_service_pb2.WatchHeartbeat(
            step=step,
            published=counters.published,
            dropped=counters.dropped,
            queued=counters.queued,
            time=convert.timestamp(time.time()),
            skipped=counters.skipped,
            blocked_seconds=counters.blocked_seconds,
        )
    )


def _ended(subscription: Subscription, reason: str) -> _Response:
    counters = subscription.counters()
    return _Response(
        ended=hook_service_pb2.WatchEnded(
            reason=reason, published=counters.published, dropped=counters.dropped
        )
    )
