"""Steps of a compiled model that is watched each tenth step, beside the same without a watch.

A step that is watched runs uncompiled, since hooks fire only there; the others stay compiled.
"""

from __future__ import annotations

import os
import shutil
import statistics
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from benchmarks.measure import QUICK, Effort, Row, absent, compared, in_turns
from benchmarks.processes import Child, environment, workplace
from benchmarks.watch_models import small
from benchmarks.watching import alone, one_thread, watched

__all__ = ["run"]


def run(quick: bool) -> list[Row]:
    """Seconds a step beside those without a watch."""
    steps = 20 if quick else 300
    effort = QUICK if quick else Effort(20, 100, 50.0)
    name = f"small model, compiled, statistics each 10th step, blocks of {steps}, beside no watch"
    if not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))):
        return [absent(name, "there is no C++ compiler")]
    with one_thread(), workplace() as place, _inductor(place), Child("benchmarks.reader") as reader:
        loop = small()
        loop.model.compile(backend="aot_eager" if quick else "inductor")
        sides = {
            "ours": lambda: watched(loop, steps, reader, {"every": 10}),
            "alone": lambda: alone(loop, steps),
        }
        turns = in_turns(sides, effort)
    row = compared(name, turns, "ours", "alone", None)
    ours, others = (statistics.median(turns[side]) * 1e3 for side in ("ours", "alone"))
    return [replace(row, detail=f"{row.detail}: {10 * (ours - others):+.2f} ms for each that is watched")]


def _inductor(place: Path) -> AbstractContextManager[None]:
    """Nothing is left of what is compiled, neither files nor processes."""
    return environment(
        {"TORCHINDUCTOR_CACHE_DIR": str(place / "inductor"), "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    )
