"""Values as short text for people: counts, sizes, shapes, numbers, durations."""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = [
    "NOTHING",
    "age",
    "byte_count",
    "hook_path",
    "human_count",
    "number",
    "one_line",
    "parse_duration",
    "path_text",
    "plural",
    "shape_text",
]

NOTHING = "-"
"""Stands in a table where a record has no value."""

_DURATION = r"(\d+(?:\.\d*)?|\.\d+)(ms|s|m|h)?"
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, None: 1.0}


def human_count(count: int) -> str:
    """A count in at most five characters up to 10**15: 7, 999, 1.2K, 45.3M, 1.8B."""
    if abs(count) < 1000:
        return str(count)
    scaled = float(count)
    for unit in ("K", "M", "B", "T"):
        scaled /= 1000
        if abs(scaled) < 999.95 or unit == "T":
            return f"{scaled:.1f}{unit}"
    raise AssertionError("the last unit takes everything")


def byte_count(count: int) -> str:
    """A size in binary units: 17 B, 1.5 KiB, 512.0 MiB."""
    if count < 1024:
        return f"{count} B"
    scaled = float(count)
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        scaled /= 1024
        if scaled < 1023.95 or unit == "TiB":
            return f"{scaled:.1f} {unit}"
    raise AssertionError("the last unit takes everything")


def number(value: float | None, digits: int = 3) -> str:
    """A number to so many significant digits; a dash for None."""
    return NOTHING if value is None else f"{value:.{digits}g}"


def shape_text(shape: Sequence[int] | None) -> str:
    """A shape as PyTorch prints it: [64, 3, 3]; a dash for None."""
    return NOTHING if shape is None else f"[{', '.join(map(str, shape))}]"


def one_line(text: str) -> str:
    """The text with control characters escaped: a name shall neither break a line nor drive a terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def path_text(path: str) -> str:
    """A module path for a table; the root, whose path is empty, gets a name to look at."""
    return one_line(path) if path else "(root)"


def hook_path(path: str, kind: str) -> str:
    """The path of a hook for people: that of all metrics has none."""
    return "(metrics)" if kind == "metric" and not path else path_text(path)


def plural(count: int, noun: str, many: str = "") -> str:
    """A count with its noun: "1 module", "12 modules"."""
    return f"{count:,} {noun if count == 1 else many or noun + 's'}"


def age(seconds: float) -> str:
    """How long something has lasted: 42s, 7m, 3h12m, 5d."""
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d"


def parse_duration(text: str) -> float:
    """Seconds in a duration such as 500ms, 10s, 1.5m, 2h; a bare number is seconds. Raises ValueError."""
    match = re.fullmatch(_DURATION, text.strip())
    if not match:
        raise ValueError(f"{text!r} is no duration: write one like 500ms, 10s, 2m or 1h")
    return float(match[1]) * _SECONDS[match[2]]
