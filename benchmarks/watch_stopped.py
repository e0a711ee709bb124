"""Steps of training while a subscriber has stopped reading, beside one that reads.

Both, and steps without modscope, are measured in the same turns. That every event has come or was counted
as dropped is asserted after each block, when the subscriber that had stopped reads what is left. Memory is
taken from the first block in which it stops, over the block before, in which nobody watched.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from benchmarks.measure import QUICK, Bar, Effort, Row, compared, in_turns, quantity
from benchmarks.processes import Child, forget_peak, peak_memory, workplace
from benchmarks.watch_models import Loop, gpt2
from benchmarks.watching import Watched, alone, one_thread, watch_block
from modscope_server import Limits

__all__ = ["run"]

_MIB = 1 << 20
_SPARE = 64
"""MiB beside the limit: messages on their way, and what the allocator keeps."""
_READS = 10
"""Events that the subscriber reads before it stops."""


class _Kind(NamedTuple):
    """What is watched, and the bounds of its queue."""

    name: str
    options: dict[str, Any]
    limits: Limits


def run(quick: bool) -> list[Row]:
    """Statistics, and whole tensors: seconds a step, and the memory of the process that trains."""
    size = 1 << 20 if quick else 256 << 20
    kinds = (
        _Kind("statistics", {"queue": 16 if quick else 64}, Limits()),
        _Kind("whole tensors", {"payload": "tensor"}, Limits(queue_bytes=size)),
    )
    with one_thread(), workplace(), Child("benchmarks.reader") as reader:
        loop = gpt2(quick=quick)
        return [row for kind in kinds for row in _rows(kind, loop, reader, quick)]


def _rows(kind: _Kind, loop: Loop, reader: Child, quick: bool) -> list[Row]:
    steps = 3
    effort = QUICK if quick else Effort(12, 60, 270.0)

    def reading() -> float:
        # Its queue may hold the whole block, since a reader that is late is not what is measured.
        options = {**kind.options, "queue": None}
        return watch_block(loop, steps, reader, options, limits=Limits(queue_bytes=2 << 30)).seconds

    def stopped() -> Watched:
        return watch_block(loop, steps, reader, kind.options, most=_READS, limits=kind.limits)

    name = f"GPT-2, {kind.name}, blocks of {steps}: a subscriber that has stopped reading"
    memory = _memory(f"{name}, peak memory over that of training alone", kind, loop, steps, stopped)
    sides = {
        "stopped": lambda: stopped().seconds,
        "reading": reading,
        "alone": lambda: alone(loop, steps),
    }
    turns = in_turns(sides, effort)
    return [
        compared(f"{name}, beside one that reads", turns, "stopped", "reading", Bar(1.02)),
        compared("the same, beside no subscriber", turns, "stopped", "alone", Bar(1.5)),
        compared("one that reads, beside no subscriber", turns, "reading", "alone", Bar(1.5)),
        memory,
    ]


def _memory(name: str, kind: _Kind, loop: Loop, steps: int, stopped: Callable[[], Watched]) -> Row:
    forget_peak()
    alone(loop, steps)
    before = peak_memory()
    forget_peak()
    block = stopped()
    limit = kind.limits.queue_bytes // _MIB
    return quantity(
        name,
        (peak_memory() - before) / _MIB,
        "MiB",
        bar=Bar(limit + _SPARE),
        detail=f"the queue holds at most {limit} MiB; {block.dropped} of {block.published} events dropped",
    )
