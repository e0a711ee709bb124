"""`modscope ls` as a process, off a terminal, beside `python -c "import grpc"`."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.measure import Bar, Effort, Row, measure, ratio
from benchmarks.processes import Child, workplace

__all__ = ["run"]


def run(quick: bool) -> list[Row]:
    """Wall time of both, from start to exit."""
    effort = Effort(3, 10, 5.0) if quick else Effort(20, 200, 120.0)
    script = Path(sys.executable).with_name("modscope")
    ls = [str(script), "ls"] if script.exists() else [sys.executable, "-m", "modscope_client", "ls"]
    with workplace(), Child("benchmarks.models", "digits") as server:
        assert server.hello
        assert b"head" in subprocess.run(ls, check=True, stdout=subprocess.PIPE).stdout
        pairs = measure(lambda: _wall(ls), lambda: _wall([sys.executable, "-c", "import grpc"]), effort)
    ours, others = (statistics.median(side) * 1e3 for side in (pairs.ours, pairs.peers))
    return [
        ratio(
            'modscope ls, wall time beside python -c "import grpc"',
            pairs,
            bar=Bar(2.0),
            detail=f"{ours:.0f} beside {others:.0f} ms",
        )
    ]


def _wall(command: list[str]) -> float:
    """Seconds."""
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - began
