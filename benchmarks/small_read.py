"""One small parameter, beside a raw grpcio unary echo of the same bytes. Each measurement is a p50."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy

from benchmarks import peers
from benchmarks.measure import Bar, Effort, Row, measure, ratio
from benchmarks.processes import Child, workplace
from modscope_client import connect

__all__ = ["run"]

_PATH = "head.fc2.weight"


def run(quick: bool) -> list[Row]:
    """The p50 of model.read, in blocks of calls that alternate with blocks of echoes."""
    calls, effort = (50, Effort(5, 20, 3.0)) if quick else (200, Effort(30, 400, 60.0))
    with (
        workplace() as place,
        Child("benchmarks.models", "digits") as server,
        Child("benchmarks.peers", "serve", str(place / "raw.sock")) as raw,
        connect(server.hello["address"], token=server.hello["token"]) as client,
    ):
        model = client.model()
        echo = peers.Echo(raw.hello["address"])
        payload = numpy.asarray(model.read(_PATH)).tobytes()
        assert echo.call(payload) == payload
        pairs = measure(
            lambda: _p50(lambda: model.read(_PATH), calls),
            lambda: _p50(lambda: echo.call(payload), calls),
            effort,
        )
        echo.close()
    ours, others = (statistics.median(side) * 1e6 for side in (pairs.ours, pairs.peers))
    return [
        ratio(
            f"read() of a parameter of {len(payload):,} bytes, p50 beside a raw unary echo",
            pairs,
            bar=Bar(1.5),
            detail=f"{ours:.0f} beside {others:.0f} us",
        )
    ]


def _p50(call: Callable[[], Any], calls: int) -> float:
    """Seconds."""
    taken = []
    for _ in range(calls):
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)
