"""Steps of training with one subscriber to the statistics of every tenth, beside steps without modscope."""

from __future__ import annotations

from benchmarks.measure import QUICK, Bar, Effort, Row, compared, in_turns
from benchmarks.processes import Child, workplace
from benchmarks.watch_models import gpt2
from benchmarks.watching import alone, one_thread, watched

__all__ = ["run"]

_STEPS = 10
"""The steps of a block are 1 to 10, after one that warms up: the last is looked at."""


def run(quick: bool) -> list[Row]:
    """Seconds a step over those without modscope."""
    with one_thread(), workplace(), Child("benchmarks.reader") as reader:
        loop, steps = gpt2(quick=quick), 1 if quick else _STEPS
        effort = QUICK if quick else Effort(12, 40, 420.0)
        sides = {
            "ours": lambda: watched(loop, steps, reader, {"every": 10}),
            "alone": lambda: alone(loop, steps),
        }
        turns = in_turns(sides, effort)
    name = f"GPT-2, statistics of every output each 10th step, blocks of {steps}"
    return [compared(name, turns, "ours", "alone", Bar(1.02))]
