"""Steps of a compiled model that is watched each tenth step, beside the same without a watch.

A step that is watched runs uncompiled, since hooks fire only there; the others stay compiled.
"""

from __future__ import annotations

import os
import shutil
from contextlib import AbstractContextManager
from pathlib import Path

from benchmarks.measure import QUICK, Effort, Row, absent, compared, in_turns
from benchmarks.processes import Child, environment, workplace
from benchmarks.watch_models import small
from benchmarks.watching import alone, one_thread, watched

__all__ = ["run"]


def run(quick: bool) -> list[Row]:
    """Seconds a step beside those without a watch."""
    steps = 20 if quick else 300
    effort = QUICK if quick else Effort(20, 100, 60.0)
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
    return [compared(name, turns, "ours", "alone", None)]


def _inductor(place: Path) -> AbstractContextManager[None]:
    """Nothing is left of what is compiled, neither files nor processes."""
    return environment(
        {"TORCHINDUCTOR_CACHE_DIR": str(place / "inductor"), "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    )
