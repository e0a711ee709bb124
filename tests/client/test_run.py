"""The run under control, against a run that the test itself moves: the sync and the async client alike."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable
from typing import Any

import pytest

from modscope.v1 import run_pb2, run_service_pb2
from modscope_client import run_control
from modscope_client.errors import DeadlineExceeded, InvalidArgument
from modscope_client.types import Break, Lease, Metric, MetricPoint, Pause, RunStatus
from modscope_client.waiting import Waiting
from tests.client.both import CLIENTS, entered, over, settle
from tests.client.fake_run import FakeRun
from tests.client.fake_server import serving
from tests.end_to_end.serving import until

PAUSED, ENDED = run_pb2.RUN_STATE_PAUSED, run_pb2.RUN_STATE_NO_TRAINING
BOTH = pytest.mark.parametrize("kind", CLIENTS, ids=["sync", "aio"])


def tried(kind: Any, run: FakeRun, body: Any, timeout: float = 30, **more: Any) -> Any:
    """Runs the body over a client of the run."""
    with serving({**run.behaviours(), **more.get("behaviours", {})}) as endpoint:
        return over(kind, endpoint, body, timeout)


@BOTH
def test_a_status_is_a_record(kind: Any) -> None:
    async def body(client: Any) -> RunStatus:
        return await settle(client.run.status())  # type: ignore[no-any-return]

    run = FakeRun(seconds=30)
    run.state = PAUSED
    run.step = 8
    assert tried(kind, run, body) == RunStatus(
        step=8,
        steps_per_second=2.5,
        state="paused",
        doing="in forward of model",
        metrics=(Metric("loss", (MetricPoint(7, 0.5),)),),
        pause=Pause(Lease("lease-1", 30.0, 100.0, "pause", "operator"), "pause", "", 50.0),
        breaks=(),
        waiting=0,
        skipped_steps=0,
        notes=("of the server",),
        last_resume="resumed by operator",
    )


async def fail_within(manager: Any) -> None:
    async with entered(manager):
        raise ZeroDivisionError


@BOTH
def test_a_pause_lasts_as_long_as_its_with(kind: Any) -> None:
    run = FakeRun()

    async def body(client: Any) -> None:
        async with entered(client.run.pause()) as paused:
            assert paused.status.state == "paused" and paused.status.pause.since == 50.0
            assert run.seconds == 30 and run.calls == ["pause"]
        assert run.calls == ["pause", "resume"]
        with pytest.raises(ZeroDivisionError):
            await fail_within(client.run.pause(lease=90))
        assert run.seconds == 90
        assert run.calls == ["pause", "resume"] * 2 and run.state == run_pb2.RUN_STATE_RUNNING

    tried(kind, run, body)


@BOTH
def test_of_nested_pauses_the_outermost_resumes(kind: Any) -> None:
    run = FakeRun()

    async def body(client: Any) -> None:
        async with entered(client.run.pause()):
            async with entered(client.run.pause()):
                pass
            assert run.calls == ["pause", "pause"] and run.state == PAUSED
        assert run.calls == ["pause", "pause", "resume"]

    tried(kind, run, body)


@BOTH
def test_a_pause_that_is_interrupted_is_withdrawn(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = FakeRun(boundaries=False)

    def interrupt(self: Waiting, message: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Waiting, "take", interrupt)

    async def body(client: Any) -> None:
        with pytest.raises(KeyboardInterrupt):
            await settle(client.run.pause())
        assert run.calls == ["pause", "resume"]

    tried(kind, run, body)


@BOTH
def test_a_pause_that_is_no_with_lasts(kind: Any) -> None:
    run = FakeRun()

    async def body(client: Any) -> None:
        paused = await settle(client.run.pause())
        assert run.calls == ["pause"] and paused.status.state == "paused"
        assert (await settle(paused.resume())).state == "running"
        assert (await settle(client.run.pause(wait=False))).status.pause.since is None

    tried(kind, run, body)


@BOTH
def test_a_pause_that_does_not_come_is_withdrawn(kind: Any) -> None:
    run = FakeRun(boundaries=False)

    async def body(client: Any) -> None:
        with pytest.raises(
            DeadlineExceeded, match=r"0\.5 s.* withdrawn: it is at step 7, in forward"
        ) as over:
            await settle(client.run.pause())
        assert over.value.reason == "NO_SAFE_POINT" and "connect(timeout=...)" in over.value.hint
        assert run.calls[-1] == "resume"

    tried(kind, run, body, 0.5)


@BOTH
@pytest.mark.parametrize("state", [ENDED, run_pb2.RUN_STATE_IDLE])
def test_a_pause_waits_for_a_loop_that_begins(kind: Any, state: Any) -> None:
    run = FakeRun(boundaries=False)
    run.state = state

    async def body(client: Any) -> None:
        waiter = threading.Thread(target=begin_later)
        waiter.start()
        paused = await settle(client.run.pause())
        assert paused.status.state == "paused"
        waiter.join()

    def begin_later() -> None:
        run.until(lambda: run.streams >= 1)
        run.change(state=run_pb2.RUN_STATE_RUNNING, boundaries=True)

    tried(kind, run, body)


@BOTH
def test_steps_are_over_when_the_run_is_held_again(kind: Any) -> None:
    run = FakeRun()

    def go_on() -> None:
        run.until(lambda: run.streams >= 1)
        run.change(step=8)
        run.change(step=10, state=PAUSED)

    async def body(client: Any) -> None:
        waiter = threading.Thread(target=go_on)
        waiter.start()
        status = await settle(client.run.step(3))
        assert (status.step, status.state) == (10, "paused") and run.calls == ["step 3"]
        waiter.join()
        streams = run.streams
        assert (await settle(client.run.step())).step == 10 and run.calls[-1] == "step 1"
        assert run.streams == streams, "where it is held again already nothing is waited for"
        run.change(state=run_pb2.RUN_STATE_RUNNING)
        assert (await settle(client.run.step(wait=False))).state == "running"

    tried(kind, run, body)


@BOTH
def test_steps_may_take_as_long_as_they_come(kind: Any) -> None:
    run = FakeRun()

    async def body(client: Any) -> None:
        with pytest.raises(DeadlineExceeded, match=r"0\.5 s without a step; it will be after its steps"):
            await settle(client.run.step())
        assert "resume" not in run.calls

    tried(kind, run, body, 0.5)


@BOTH
def test_a_loop_that_ends_ends_the_wait(kind: Any) -> None:
    run = FakeRun()
    run.state = ENDED

    async def body(client: Any) -> None:
        assert (await settle(client.run.wait())).state == "no_training"
        assert (await settle(client.run.step(2))).state == "no_training"

    tried(kind, run, body)


@BOTH
def test_a_training_that_has_not_begun_is_waited_for(kind: Any) -> None:
    run = FakeRun()
    run.state, run.step = ENDED, 0

    def begin() -> None:
        run.until(lambda: run.streams >= 2)
        run.change(state=PAUSED, step=1)

    async def body(client: Any) -> None:
        waiter = threading.Thread(target=begin)
        waiter.start()
        assert (await settle(client.run.wait())).state == "paused"
        waiter.join()

    tried(kind, run, body)


@BOTH
def test_a_wait_goes_on_over_streams_that_end_and_streams_that_are_refused(kind: Any) -> None:
    run = FakeRun()
    run.messages_of_a_stream, run.refuse_streams = 1, 2

    def hit() -> None:
        run.until(lambda: run.streams >= 5)
        run.change(state=PAUSED)

    async def body(client: Any) -> None:
        waiter = threading.Thread(target=hit)
        waiter.start()
        assert (await settle(client.run.wait())).state == "paused"
        waiter.join()
        assert run.streams >= 5

    tried(kind, run, body)


@BOTH
def test_a_wait_has_an_end_where_it_is_given_one(kind: Any) -> None:
    run = FakeRun()

    async def body(client: Any) -> None:
        with pytest.raises(DeadlineExceeded, match=r"0\.05 s"):
            await settle(client.run.wait(0.05))

    tried(kind, run, body)


@BOTH
def test_what_cannot_be_is_refused_before_it_is_sent(kind: Any) -> None:
    run = FakeRun()

    async def body(client: Any) -> None:
        for attempt in (
            lambda: client.run.pause(0),
            lambda: client.run.pause("soon"),
            lambda: client.run.step(0),
            lambda: client.run.step(True),
            lambda: client.run.step(1, lease=-1),
            lambda: client.run.wait(0),
            lambda: client.run.break_when("step == 1", float("nan")),
            lambda: client.run.break_when(7),
            lambda: client.run.status(0.5),
            lambda: client.run.clear(7),
        ):
            with pytest.raises(InvalidArgument) as refusal:
                await settle(attempt())
            assert refusal.value.details["field"]

    tried(kind, run, body)
    assert run.calls == []


@BOTH
def test_breaks(kind: Any) -> None:
    asked: list[Any] = []
    stop = run_pb2.Break(id="b-1", expression="step == 9", hits=2, notes=["a note"], lease_seconds=60)

    def add(request: bytes, context: Any) -> Any:
        asked.append(run_service_pb2.AddBreakRequest.FromString(request))
        return run_service_pb2.AddBreakResponse(added=stop)

    def clear(request: bytes, context: Any) -> Any:
        asked.append(run_service_pb2.ClearBreaksRequest.FromString(request))
        return run_service_pb2.ClearBreaksResponse(breaks=[stop])

    behaviours = {
        run_control.ADD_BREAK: add,
        run_control.CLEAR_BREAKS: clear,
        run_control.LIST_BREAKS: lambda request, context: run_service_pb2.ListBreaksResponse(breaks=[stop]),
    }

    async def body(client: Any) -> None:
        expected = Break("b-1", "step == 9", 2, ("a note",), 60.0)
        assert await settle(client.run.break_when("step == 9")) == expected
        assert asked[-1] == run_service_pb2.AddBreakRequest(expression="step == 9", lease_seconds=600)
        assert await settle(client.run.breaks()) == [expected]
        assert await settle(client.run.clear("b-1", "b-2")) == [expected]
        assert list(asked[-1].ids) == ["b-1", "b-2"]
        await settle(client.run.clear())
        assert list(asked[-1].ids) == []

    tried(kind, FakeRun(), body, behaviours=behaviours)


async def reached(condition: Callable[[], bool]) -> None:
    """Waits for the condition on a thread, so that tasks of the event loop run meanwhile."""
    await asyncio.to_thread(until, condition, "the condition")


@BOTH
def test_a_lease_is_renewed_until_the_run_resumes(kind: Any) -> None:
    run = FakeRun(seconds=0.3)

    async def body(client: Any) -> None:
        async with entered(client.run.pause()):
            await reached(lambda: run.renewals >= 4)
        renewed = run.renewals
        await reached(lambda: lease_threads() == 0)
        assert run.renewals - renewed <= 1, "one may have been on its way"
        assert (await settle(client.run.status())).notes == ("of the server",)

    tried(kind, run, body)


@BOTH
def test_one_lease_is_renewed_once(kind: Any) -> None:
    run = FakeRun()

    async def body(client: Any) -> None:
        loop = asyncio.get_running_loop()

        def renewers() -> int:
            tasks = sum(task.get_name() == "modscope-lease" for task in asyncio.all_tasks(loop))
            return tasks + lease_threads()

        await settle(client.run.pause())
        await settle(client.run.pause())
        await reached(lambda: renewers() == 1)
        await settle(client.run.resume())
        await reached(lambda: renewers() == 0)

    tried(kind, run, body)


@BOTH
def test_a_lease_that_was_lost_is_told_once(kind: Any) -> None:
    run = FakeRun(seconds=0.3)
    run.refuse_renewals = True

    async def body(client: Any) -> None:
        await settle(client.run.pause())
        await reached(lambda: run.renewals == 1)
        await reached(lambda: client.run._renewals.left() is None)
        notes = (await settle(client.run.status())).notes
        assert notes[0] == "of the server" and "lease-1" in notes[1] and "it was taken away" in notes[1]
        assert (await settle(client.run.status())).notes == ("of the server",)
        assert run.renewals == 1

    tried(kind, run, body)


def lease_threads() -> int:
    return sum(thread.name == "modscope-lease" for thread in threading.enumerate())


@pytest.mark.parametrize("end", ["close", "forget"])
def test_nobody_renews_for_a_client_that_is_closed_or_forgotten(end: str) -> None:
    run = FakeRun(seconds=0.3)
    with serving(run.behaviours()) as endpoint:
        client = CLIENTS[0](endpoint, 30)
        client.run.pause()
        until(lambda: run.renewals >= 1, "it is renewed")
        assert lease_threads() == 1
        if end == "close":
            client.close()
        calls = client._calls
        del client
        gc.collect()
        until(lambda: lease_threads() == 0, "nobody renews it")
        calls.close()
