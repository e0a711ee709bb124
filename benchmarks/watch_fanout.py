"""What 64 subscribers of the same statistics add to a step, over what one adds.

The subscribers share a thread of another process, each with a connection of its own, and leave what comes
unparsed: their own work is done elsewhere in life, and here it would take the trainer's cores.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

import grpc

from benchmarks.measure import QUICK, Bar, Effort, Row, added, compared, in_turns
from benchmarks.processes import Child, answer, workplace
from benchmarks.watch_models import Loop, gpt2
from benchmarks.watching import alone, attached, one_thread
from modscope.v1 import hook_service_pb2
from modscope_client.address import parse_address
from modscope_client.channel import EVENTS_AHEAD, Endpoint
from modscope_client.rpcs import WATCH

__all__ = ["main", "run"]

T = TypeVar("T")

_MANY = 64


def run(quick: bool) -> list[Row]:
    """The added cost of many over that of one, and both over steps without modscope."""
    many, steps = (4, 1) if quick else (_MANY, 6)
    effort = QUICK if quick else Effort(40, 60, 900.0, width=0.0)
    with one_thread(), workplace(), Child("benchmarks.watch_fanout") as readers:
        loop = gpt2(quick=quick)
        sides = {
            "many": lambda: _watched(loop, steps, readers, many),
            "one": lambda: _watched(loop, steps, readers, 1),
            "alone": lambda: alone(loop, steps),
        }
        turns = in_turns(sides, effort)
    name = f"GPT-2, statistics of every output, blocks of {steps}"
    return [
        added(
            f"{name}: what {many} subscribers add, over what one adds", turns, "many", "one", "alone", Bar(2)
        ),
        compared(f"{many} subscribers, beside none", turns, "many", "alone", None),
        compared("one subscriber, beside none", turns, "one", "alone", None),
    ]


def _watched(loop: Loop, steps: int, readers: Child, count: int) -> float:
    with attached(loop) as scope:
        readers.ask("watch", count, scope.address, scope.token)
        taken = loop.block(steps)
        assert readers.ask("stop") > 0
    return taken


class _Readers:
    """Watches, all of them read by one thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def watch(self, count: int, address: str, token: str) -> None:
        """Arm so many; returns when all are armed."""
        self._subscribers = self._run(_subscribed(count, Endpoint(place=parse_address(address), token=token)))

    def stop(self) -> int:
        """End them. Gives the messages of the one that got the fewest."""
        return min(self._run(_stopped(self._subscribers)))

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


class _Subscriber:
    """A stream of messages that are counted."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._messages = 0
        self._channel = endpoint.open_async(ahead=EVENTS_AHEAD)
        request = hook_service_pb2.WatchRequest().SerializeToString()
        watch: Any = self._channel.unary_stream(WATCH.path)
        self._stream = watch(request, metadata=endpoint.metadata())

    async def armed(self) -> None:
        """Wait until it is armed, then count what comes."""
        await self._stream.read()
        self._reading = asyncio.create_task(self._read())

    async def stop(self) -> int:
        """End it. Gives the messages that came after the first, which says that it is armed."""
        self._stream.cancel()
        await self._reading
        await self._channel.close()
        return self._messages

    async def _read(self) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            while await self._stream.read() is not grpc.aio.EOF:
                self._messages += 1


async def _subscribed(count: int, endpoint: Endpoint) -> list[_Subscriber]:
    subscribers = [_Subscriber(endpoint) for _ in range(count)]
    await asyncio.gather(*[subscriber.armed() for subscriber in subscribers])
    return subscribers


async def _stopped(subscribers: list[_Subscriber]) -> list[int]:
    return await asyncio.gather(*[subscriber.stop() for subscriber in subscribers])


def main() -> None:
    """Watches when it is told to, until standard input ends."""
    readers = _Readers()
    answer({}, {"watch": readers.watch, "stop": readers.stop})


if __name__ == "__main__":
    main()
