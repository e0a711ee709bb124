"""Steps of training with one subscriber to every module's output, beside steps without modscope.

The subscriber is a process of its own that reads all the while; torch has one thread. For the small model
the peer is hooks written by hand that compute the same and send nothing.
"""

from __future__ import annotations

import contextlib
import io
import statistics
import threading
from collections.abc import Callable

import torch

import modscope_server
from benchmarks.idle_step import without_global_hooks
from benchmarks.measure import Bar, Effort, Row, measure, ratio
from benchmarks.processes import Child, answer, workplace
from benchmarks.watch_models import Loop, gpt2, lean_hooks, small

__all__ = ["main", "run"]


def run(quick: bool) -> list[Row]:
    """Seconds a step: statistics, histograms, every tenth step; and a small model beside hooks by hand."""
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _rows(quick)
    finally:
        torch.set_num_threads(threads)


def _rows(quick: bool) -> list[Row]:
    large, steps = gpt2(1 if quick else 6), 1 if quick else 6
    effort = Effort(3, 4, 5.0) if quick else Effort(20, 100, 240.0)
    name = f"GPT-2, every module's output, blocks of {steps}: "
    with workplace(), Child("benchmarks.watch_stats") as reader:
        return [
            _row(name + "statistics", large, steps, reader, "stats 1", effort, Bar(1.10)),
            _row(name + "histograms", large, steps, reader, "histogram 1", effort, Bar(1.20)),
            _row(name + "statistics every 10th", large, steps, reader, "stats 10", effort, Bar(1.02)),
            _small(reader, 50 if quick else 300, effort),
        ]


def _row(name: str, loop: Loop, steps: int, reader: Child, what: str, effort: Effort, bar: Bar) -> Row:
    def alone() -> float:
        with without_global_hooks():
            return loop.block(steps)

    return _beside(name, lambda: _watched(loop, steps, reader, what), alone, effort, bar)


def _small(reader: Child, steps: int, effort: Effort) -> Row:
    loop = small()

    def by_hand() -> float:
        with without_global_hooks():
            remove = lean_hooks(loop.model)
            taken = loop.block(steps)
            remove()
        return taken

    name = f"small model, statistics, beside hooks by hand, blocks of {steps}"
    return _beside(name, lambda: _watched(loop, steps, reader, "stats 1"), by_hand, effort, Bar(1.3))


def _watched(loop: Loop, steps: int, reader: Child, what: str) -> float:
    """Seconds a step while the reader watches."""
    with (
        contextlib.redirect_stderr(io.StringIO()),
        modscope_server.attach(loop.model, optimizer=loop.optimizer),
    ):
        reader.ask(f"watch {what}")
        taken = loop.block(steps)
        assert reader.ask("stop") > 0
    return taken


def _beside(name: str, ours: Callable[[], float], peer: Callable[[], float], effort: Effort, bar: Bar) -> Row:
    pairs = measure(ours, peer, effort)
    one, other = (statistics.median(side) * 1e3 for side in (pairs.ours, pairs.peers))
    return ratio(name, pairs, bar=bar, detail=f"{one:.2f} beside {other:.2f} ms")


class _Reader:
    """The subscriber: a thread that reads until it is told to stop."""

    def watch(self, payload: str, every: int) -> int:
        """Arm a watch. Gives the number of its modules."""
        from modscope_client import connect

        self._client = connect(timeout=30)
        self._watch = self._client.model().watch(payload=payload, every=every)
        self._events = self._watch.__enter__()
        self._thread = threading.Thread(target=lambda: [None for _ in self._events])
        self._thread.start()
        return len(self._events.paths)

    def stop(self) -> int:
        """End it. Gives the number of events that came."""
        self._events.stop()
        self._thread.join()
        counters = self._events.counters
        self._watch.__exit__(None, None, None)
        self._client.close()
        return counters.published - counters.dropped


def main() -> None:
    """The reader's process."""
    reader = _Reader()
    watches = {
        f"watch {payload} {every}": lambda payload=payload, every=every: reader.watch(payload, every)
        for payload, every in (("stats", 1), ("stats", 10), ("histogram", 1))
    }
    answer({}, {**watches, "stop": reader.stop})


if __name__ == "__main__":
    main()
