"""Events whose every number is known, and what a watch tells of itself."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from modscope_client.sinks import Metrics
from modscope_client.types import Event, Histogram, Metric, MetricPoint, Stats, ValueInfo, WatchCounters

__all__ = ["METRICS", "Armed", "event", "events", "metric", "stats"]


@dataclass(frozen=True)
class Armed:
    """A watch that is armed."""

    step: int = 0
    paths: tuple[str, ...] = ("mlp.w1",)
    notes: tuple[str, ...] = ()
    counters: WatchCounters = field(default_factory=lambda: WatchCounters(0, 0, 0, 0))


def stats(mean: float | None = 0.5, **more: float | None) -> Stats:
    """Of four elements: two that are finite, one nan, one infinite."""
    known = {"std": 0.25, "min": 0.25, "max": 0.75, "norm": 0.75, **more}
    return Stats(count=4, mean=mean, zeros=0, nan=1, inf=1, **known)  # type: ignore[arg-type]


def event(seq: int = 0, path: str = "mlp.w1", hook: str = "forward", **more: object) -> Event:
    """A forward of one module, whose output is bare."""
    values = [ValueInfo("output", "", (4,), "float32", stats())]
    given: dict[str, Any] = {"call": 0, "values": values, "step": seq, "type": "Linear", **more}
    return Event(seq=seq, model="gpt", path=path, hook=hook, time=1e9 + seq, dropped=0, **given)


def events() -> list[Event]:
    """One of each kind that names differ by."""
    wide = ValueInfo("output", "logits", (2, 2), "float32", stats(), Histogram((0.0, 0.5, 1.0), (1, 1)))
    empty = ValueInfo("output", "", (0,), "float32", Stats(0, None, None, None, None, None, 0, 0, 0))
    none = ValueInfo("output", "past", None, None)
    gradients = [
        ValueInfo("grad_output", "0", (4,), "float32", stats(std=None)),
        ValueInfo("grad_input", "", (4,), "float32", stats(mean=math.inf)),
    ]
    return [
        event(0),
        event(1, path="", values=[wide, none]),
        event(2, path="block.0.odd name:é", values=[empty]),
        event(3, call=2, step=1),
        event(4, recompute=True, step=1),
        event(5, hook="backward", values=gradients, step=2),
        event(6, hook="forward_pre", values=[ValueInfo("input", "x", (4,), "float32", stats())]),
        event(7, "mlp.w1.weight", "parameter", values=[ValueInfo("parameter", "", (4,), "float32", stats())]),
        event(8, "mlp.w1.weight", "gradient", values=[ValueInfo("gradient", "", (4,), "float32", stats())]),
        event(9, "mlp.w1.bias", "gradient", values=[ValueInfo("gradient", "", None, None)]),
        metric(10, "loss", 0.25, step=7),
        metric(11, "val/acc", 0.75, step=7),
        metric(12, "loss", math.nan, step=8),
    ]


def metric(seq: int, name: str, value: float, *, step: int) -> Event:
    """A scalar that the loop has reported."""
    finite = value if math.isfinite(value) else None
    zero = None if finite is None else 0.0
    told = Stats(1, finite, zero, finite, finite, finite, 0, int(math.isnan(value)), int(math.isinf(value)))
    return event(
        seq, name, "metric", type="", step=step, values=[ValueInfo("metric", "", (), "float64", told)]
    )


METRICS = Metrics(
    model="gpt",
    connected=True,
    reconnects=1,
    published=9,
    dropped=2,
    step=7,
    reported=(
        Metric("loss", (MetricPoint(5, 0.75), MetricPoint(6, 0.5), MetricPoint(7, 0.25))),
        Metric("lr", ()),
    ),
)
