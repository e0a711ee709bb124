"""A subscriber in a process of its own: it watches, reads or stops reading, and tells what has come.

python -m benchmarks.reader
"""

from __future__ import annotations

import threading
import time
from typing import Any

from benchmarks.processes import answer
from modscope_client import connect

__all__ = ["Reader", "main"]


_PATIENCE = 60.0
"""Seconds for which events are awaited."""


class Reader:
    """One watch after another, each read by a thread."""

    def watch(
        self,
        options: dict[str, Any],
        most: int | None = None,
        address: str | None = None,
        token: str | None = None,
    ) -> int:
        """Arm a watch, and read until `stop`, or until so many events have come. Gives how many modules
        it watches."""
        self._client = connect(address, token=token, timeout=30)
        self._watch = self._client.model().watch(**options)
        self._events = self._watch.__enter__()
        self._most, self._delivered, self._latest = most, 0, 0.0
        self._goes_on, self._reached = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()
        return len(self._events.paths)

    def wait(self) -> float:
        """Wait until so many events have come as `watch` was told. Gives when that was."""
        if not self._reached.wait(_PATIENCE):
            raise TimeoutError(f"{self._delivered} of {self._most} events have come: {self._events.counters}")
        return self._latest

    def stop(self) -> dict[str, int]:
        """End the watch and read what is left. Gives its counters, and how many events have come."""
        self._events.stop()
        self._goes_on.set()
        self._thread.join()
        counters = self._events.counters
        self._watch.__exit__(None, None, None)
        self._client.close()
        return {
            "published": counters.published,
            "dropped": counters.dropped,
            "delivered": self._delivered,
        }

    def _read(self) -> None:
        for _ in self._events:
            self._delivered += 1
            if self._delivered == self._most:
                self._latest = time.perf_counter()
                self._reached.set()
                self._goes_on.wait()


def main() -> None:
    """Watches when it is told to, until standard input ends."""
    reader = Reader()
    answer({}, {"watch": reader.watch, "wait": reader.wait, "stop": reader.stop})


if __name__ == "__main__":
    main()
