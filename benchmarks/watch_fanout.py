"""What 64 subscribers of the same statistics add to a step, over what one adds.

The subscribers share a process, each with a connection of its own, and leave what comes unparsed: their own
work is done elsewhere in life, and here it would take the trainer's cores.
"""

from __future__ import annotations

import threading
from typing import Any

import grpc

from benchmarks.measure import QUICK, Bar, Effort, Row, added, compared, in_turns
from benchmarks.processes import Child, answer, workplace
from benchmarks.watch_models import Loop, gpt2
from benchmarks.watching import alone, attached, one_thread
from modscope.v1 import hook_service_pb2
from modscope_client.rpcs import WATCH

__all__ = ["main", "run"]

_MANY = 64


def run(quick: bool) -> list[Row]:
    """The added cost of many over that of one, and both over steps without modscope."""
    many, steps = (4, 1) if quick else (_MANY, 6)
    effort = QUICK if quick else Effort(14, 60, 300.0, width=0.0)
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
    """Watches, each read by a thread."""

    def watch(self, count: int, address: str, token: str) -> None:
        """Arm so many; returns when all are armed."""
        self._subscribers = [_Subscriber(address, token) for _ in range(count)]
        for subscriber in self._subscribers:
            subscriber.armed.wait()

    def stop(self) -> int:
        """End them. Gives the messages of the one that got the fewest."""
        return min([subscriber.stop() for subscriber in self._subscribers])


class _Subscriber:
    """A stream of messages that are counted."""

    def __init__(self, address: str, token: str) -> None:
        self.armed = threading.Event()
        self._messages = 0
        self._channel = grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)])
        watch: Any = self._channel.unary_stream(WATCH.path)
        request = hook_service_pb2.WatchRequest().SerializeToString()
        self._stream = watch(request, metadata=(("authorization", f"Bearer {token}"),))
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def stop(self) -> int:
        """End it. Gives the messages that came after the first, which says that it is armed."""
        self._stream.cancel()
        self._thread.join()
        self._channel.close()
        return self._messages

    def _read(self) -> None:
        try:
            next(self._stream)
            self.armed.set()
            for _ in self._stream:
                self._messages += 1
        except grpc.RpcError:
            if self._stream.code() is not grpc.StatusCode.CANCELLED:
                raise


def main() -> None:
    """Watches when it is told to, until standard input ends."""
    readers = _Readers()
    answer({}, {"watch": readers.watch, "stop": readers.stop})


if __name__ == "__main__":
    main()
