"""A watch whose connection ends is left as it is, and resumed; one that is left on purpose is stopped."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from modscope_client.errors import ModscopeError, ResourceExhausted, Unavailable
from tests.client.both import CLIENTS, entered, next_of, over, settle
from tests.client.fake_server import Hold
from tests.client.fake_watch import CREATED, BreakOff, Response, Watches, event

BROKEN = BreakOff(grpc.StatusCode.UNAVAILABLE)
FULL = BreakOff(grpc.StatusCode.RESOURCE_EXHAUSTED, "the queue is full")


async def _until_it_breaks(events: Any, error: type[ModscopeError]) -> int:
    seq = -1
    try:
        while (event := await next_of(events)) is not None:
            seq = event.seq
    except error:
        return seq
    raise AssertionError("it has ended without an error")


@pytest.mark.parametrize("kind", CLIENTS)
def test_a_break_leaves_it_and_another_connection_goes_on(kind: Any) -> None:
    async def body(client: Any) -> None:
        model = await settle(client.model("m"))
        async with entered(model.watch("a", keep=30)) as events:
            seq = await _until_it_breaks(events, Unavailable)
        assert seq == 1 and watches.stopped == []
        async with entered(model.watch(resume=events.watch_id, resume_after=seq)) as events:
            assert (events.watch_id, (await next_of(events)).seq) == ("watch-7", 4)
            assert events.dropped == 2
        assert watches.stopped == ["watch-7"], "left in order, it ends, though it was to be kept"

    watches = Watches(
        [CREATED, Response(events=[event(0), event(1)]), BROKEN],
        [CREATED, Response(events=[event(4, dropped=2)]), Hold()],
    )
    with watches.served() as endpoint:
        over(kind, endpoint, body)
    first, second = watches.asked
    assert (first.keep_seconds, first.resume) == (30, "")
    assert (second.resume, second.resume_after, second.keep_seconds) == ("watch-7", 1, 0)


@pytest.mark.parametrize("kind", CLIENTS)
def test_a_resumed_one_that_breaks_again_is_left_again(kind: Any) -> None:
    async def body(client: Any) -> None:
        model = await settle(client.model("m"))
        async with entered(model.watch(resume="watch-7")) as events:
            assert await _until_it_breaks(events, Unavailable) == 3

    watches = Watches([CREATED, Response(events=[event(3)]), BROKEN])
    with watches.served() as endpoint:
        over(kind, endpoint, body)
    assert watches.stopped == [] and not watches.asked[0].HasField("resume_after")


@pytest.mark.parametrize("kind", CLIENTS)
@pytest.mark.parametrize(
    ("keep", "end", "error"), [(None, BROKEN, Unavailable), (30, FULL, ResourceExhausted)]
)
def test_what_cannot_be_resumed_is_stopped(kind: Any, keep: Any, end: BreakOff, error: Any) -> None:
    async def body(client: Any) -> None:
        async with entered((await settle(client.model("m"))).watch(keep=keep)) as events:
            assert await _until_it_breaks(events, error) == 0

    watches = Watches([CREATED, Response(events=[event(0)]), end])
    with watches.served() as endpoint:
        over(kind, endpoint, body)
    assert watches.stopped == ["watch-7"]


@pytest.mark.parametrize("kind", CLIENTS)
def test_it_is_left_on_purpose(kind: Any) -> None:
    async def body(client: Any) -> None:
        async with entered((await settle(client.model("m"))).watch(keep=30)) as events:
            await next_of(events)
            await settle(events.leave())
            await settle(events.leave())
            assert await next_of(events) is None

    watches = Watches([CREATED, Response(events=[event(0)]), Hold()])
    with watches.served() as endpoint:
        over(kind, endpoint, body)
    assert watches.stopped == []


@pytest.mark.parametrize("kind", CLIENTS)
def test_an_error_of_the_caller_ends_a_kept_one_too(kind: Any) -> None:
    async def body(client: Any) -> None:
        with pytest.raises(ZeroDivisionError):
            async with entered((await settle(client.model("m"))).watch(keep=30)):
                raise ZeroDivisionError

    watches = Watches([CREATED, Hold()])
    with watches.served() as endpoint:
        over(kind, endpoint, body)
    assert watches.stopped == ["watch-7"]
