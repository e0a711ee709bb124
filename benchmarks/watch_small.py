"""Steps of a small model with one subscriber to the statistics of every module's output, each step.

The peer is hooks written by hand that compute the same and send nothing.
"""

from __future__ import annotations

from benchmarks.measure import QUICK, Bar, Effort, Row, compared, in_turns
from benchmarks.processes import Child, workplace
from benchmarks.watch_models import small
from benchmarks.watch_peers import lean_hooks
from benchmarks.watching import alone, one_thread, under, watched

__all__ = ["run"]


def run(quick: bool) -> list[Row]:
    """Seconds a step over those under hooks by hand."""
    with one_thread(), workplace(), Child("benchmarks.reader") as reader:
        loop, steps = small(), 20 if quick else 1000
        effort = QUICK if quick else Effort(20, 30, 150.0)
        sides = {
            "ours": lambda: watched(loop, steps, reader, {}),
            "by hand": lambda: under(loop, steps, lean_hooks),
            "alone": lambda: alone(loop, steps),
        }
        turns = in_turns(sides, effort)
    name = f"small model, statistics of every output, blocks of {steps}"
    return [
        compared(f"{name}, beside hooks by hand", turns, "ours", "by hand", Bar(1.3)),
        compared("the same, beside no hooks", turns, "ours", "alone", None),
    ]
