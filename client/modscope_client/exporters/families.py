"""The metrics that a scrape tells: names, labels and what they are of. See docs/exporters.md."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["COUNTERS", "FAMILIES", "OF_MODULES", "OVER_LIMIT", "REPORTED", "STATS", "Family"]

_VALUE = ("model", "path", "hook", "role", "key")


@dataclass(frozen=True)
class Family:
    """A metric: its name, without the `_total` that a counter's samples bear."""

    name: str
    """By Prometheus's rules: prefix, what, unit."""
    kind: str
    """"gauge" or "counter"."""
    help: str
    """One line."""
    labels: tuple[str, ...]
    """Names of its labels."""
    source: str
    """The attribute of Stats, of Metrics or of State that it tells."""


def _statistics(what: str, labels: tuple[str, ...], of: str = "") -> tuple[Family, ...]:
    """The gauges of one kind of value; `of`: what its help says besides."""

    def family(name: str, help: str, source: str) -> Family:
        return Family(f"modscope_{what}_{name}", "gauge", f"{help}{of}.", labels, source)

    return (
        family("mean", "Mean of the finite elements", "mean"),
        family("std", "Population standard deviation", "std"),
        family("min", "Least finite element", "min"),
        family("max", "Greatest finite element", "max"),
        family("norm", "L2 norm of the finite elements", "norm"),
        family("elements", "Elements, nan and inf included", "count"),
        family("zero_elements", "Elements that equal zero", "zeros"),
        family("nan_elements", "Elements that are not a number", "nan"),
        family("inf_elements", "Infinite elements", "inf"),
    )


STATS = {
    "value": _statistics("value", _VALUE),
    "parameter": _statistics("parameter", _VALUE[:2], ", of a parameter"),
    "gradient": _statistics("gradient", _VALUE[:2], ", of a gradient that an optimizer has used"),
}
"""By hook, those of modules together as "value"."""
COUNTERS = (
    Family("modscope_nan_elements", "counter", "Elements seen that were not a number.", _VALUE, "nan"),
    Family("modscope_inf_elements", "counter", "Infinite elements seen.", _VALUE, "inf"),
)
OF_MODULES = (
    Family("modscope_events", "counter", "Events received.", _VALUE[:3], "events"),
    Family("modscope_event_step", "gauge", "Step of the last event.", _VALUE[:3], "steps"),
    Family("modscope_event_timestamp_seconds", "gauge", "Time of the last event.", _VALUE[:3], "times"),
)
_OF_WATCH = (
    Family(
        "modscope_up", "gauge", "1 while the watch is armed, 0 while the server is away.", (), "connected"
    ),
    Family("modscope_reconnects", "counter", "How often the watch was armed anew.", (), "reconnects"),
    Family("modscope_step", "gauge", "Training steps completed, as told last.", (), "step"),
    Family("modscope_events_published", "counter", "Events published, dropped included.", (), "published"),
    Family(
        "modscope_events_dropped", "counter", "Events lost, to keep training from waiting.", (), "dropped"
    ),
)
REPORTED = Family(
    "modscope_reported", "gauge", "Last scalar that the loop reported.", ("model", "name"), "reported"
)
OVER_LIMIT = Family(
    "modscope_series_over_limit", "counter", "Values left out, being beyond the limit of series.", (), "over"
)

FAMILIES = (
    *(family for kind in STATS.values() for family in kind),
    *COUNTERS,
    *OF_MODULES,
    *_OF_WATCH,
    REPORTED,
    OVER_LIMIT,
)
"""All that is told, modscope_build_info aside."""
