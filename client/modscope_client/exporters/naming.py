"""How events are named in tools that know neither hooks nor values; docs/exporters.md has the rules."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from modscope_client.types import Event, ValueInfo

__all__ = ["METRIC", "ROOT", "STATS", "metric_number", "tag"]

ROOT = "_root_"
"""What stands for the path "" of the root module."""

METRIC = "metric"
"""The hook of a reported scalar, whose path is its name."""

STATS = ("mean", "std", "min", "max", "norm", "zeros", "nan", "inf")
"""The statistics that are exported, by the names of their fields."""

_OWN_ROLES = {
    "forward_pre": "input",
    "forward": "output",
    "backward_pre": "grad_output",
    "backward": "grad_input",
    "parameter": "parameter",
    "gradient": "gradient",
}
"""Hook -> what it is asked for: a bare value of that role needs no name of its own."""

_UNUSUAL = re.compile(r"[^\w./-]", re.ASCII)


def tag(event: Event, value: ValueInfo) -> str:
    """HOOK/PATH, then what tells this value from others of the hook: call, recomputation, role and key."""
    parts = [event.hook, event.path or ROOT]
    if event.recompute:
        parts.append("recompute")
    if event.call:
        parts.append(f"call-{event.call}")
    if value.key or value.role != _OWN_ROLES.get(event.hook):
        parts.append(f"{value.role}.{value.key}" if value.key else value.role)
    return _UNUSUAL.sub("_", "/".join(parts))


def metric_number(event: Event) -> float | None:
    """The number that an event of a reported scalar brings; None with a payload that has none.

    Statistics do not tell the sign of what is infinite.
    """
    for value in event.values:
        if value.array is not None:
            return float(value.array)  # type: ignore[arg-type]  # float64, which is always an array
        stats = value.stats
        if stats is not None:
            return stats.mean if stats.mean is not None else math.nan if stats.nan else math.inf
    return None
