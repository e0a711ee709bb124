"""Steps of training with one subscriber to statistics and a histogram of every module's output, each step.

Beside them, in the same turns: steps without modscope, and steps under TensorBoard's add_histogram of each
module's output, by forward hooks.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

from benchmarks.measure import QUICK, Bar, Effort, Row, absent, added, compared, in_turns
from benchmarks.processes import Child, workplace
from benchmarks.watch_models import gpt2
from benchmarks.watch_peers import tensorboard_histograms
from benchmarks.watching import alone, one_thread, under, watched

__all__ = ["run"]

_ADDED = Bar(0.125)


def run(quick: bool) -> list[Row]:
    """Seconds a step over those without modscope, and what is added over what TensorBoard adds."""
    with one_thread(), workplace(), Child("benchmarks.reader") as reader:
        loop, steps = gpt2(quick=quick), (1 if quick else 2)
        effort = QUICK if quick else Effort(15, 40, 270.0)
        sides: dict[str, Callable[[], float]] = {
            "ours": lambda: watched(loop, steps, reader, {"payload": "histogram"}),
            "alone": lambda: alone(loop, steps),
        }
        if find_spec("tensorboard") is not None:
            sides["tensorboard"] = lambda: under(loop, steps, tensorboard_histograms)
        turns = in_turns(sides, effort)
    name = f"GPT-2, histograms of every output, blocks of {steps}"
    beside = f"{name}, added cost beside TensorBoard's"
    rows = [compared(name, turns, "ours", "alone", Bar(1.20))]
    if "tensorboard" not in turns:
        return [*rows, absent(beside, "tensorboard is not installed", bar=_ADDED)]
    return [
        *rows,
        added(beside, turns, "ours", "tensorboard", "alone", _ADDED),
        compared("add_histogram by hooks in the same turns", turns, "tensorboard", "alone", None),
    ]
