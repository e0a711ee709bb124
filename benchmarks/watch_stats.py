"""Steps of training with one subscriber to the statistics of every module's output, each step.

Beside them, in the same turns: steps without modscope, under wandb.watch of all at each step, which makes
histograms of parameters and gradients, and under hooks as one writes them at first, which send nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from benchmarks.measure import QUICK, Bar, Effort, Row, absent, added, compared, in_turns
from benchmarks.processes import Child, workplace
from benchmarks.watch_models import gpt2
from benchmarks.watch_peers import has_wandb, naive_hooks, wandb_run
from benchmarks.watching import alone, one_thread, under, watched

__all__ = ["run"]

_ADDED = Bar(0.25)


def run(quick: bool) -> list[Row]:
    """Seconds a step over those without modscope, and what is added over what the peers add."""
    with one_thread(), workplace(), Child("benchmarks.reader") as reader, contextlib.ExitStack() as peers:
        loop, steps = gpt2(quick=quick), (1 if quick else 2)
        effort = QUICK if quick else Effort(15, 40, 270.0)
        sides: dict[str, Callable[[], float]] = {
            "ours": lambda: watched(loop, steps, reader, {}),
            "alone": lambda: alone(loop, steps),
            "naive": lambda: under(loop, steps, naive_hooks),
        }
        if has_wandb():
            wandb = peers.enter_context(wandb_run())
            sides["wandb"] = lambda: under(loop, steps, wandb)
        turns = in_turns(sides, effort)
    name = f"GPT-2, statistics of every output, blocks of {steps}"
    beside = f"{name}, added cost beside wandb.watch's"
    rows = [compared(name, turns, "ours", "alone", Bar(1.10))]
    if "wandb" not in turns:
        rows.append(absent(beside, "wandb is not installed", bar=_ADDED))
    else:
        rows.append(added(beside, turns, "ours", "wandb", "alone", _ADDED))
        rows.append(
            compared("wandb.watch(log='all', log_freq=1) in the same turns", turns, "wandb", "alone", None)
        )
    rows.append(compared("std_mean and aminmax by hooks in the same turns", turns, "naive", "alone", None))
    return rows
