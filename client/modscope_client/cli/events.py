"""Events as lines for people: one event, one line."""

from __future__ import annotations

from collections.abc import Sequence

from modscope_client.cli.messages import styled
from modscope_client.cli.sparkline import sparkline
from modscope_client.cli.text import number, one_line, path_text, shape_text
from modscope_client.types import Event, Sample, Stats, TensorData, ValueInfo

__all__ = ["EventLines"]

_WIDEST_PATH = 48
_ELEMENTS_SHOWN = 6
_DIGITS = 6
"""Of a metric, which stands alone."""
_BOUNDARY_HOOKS = ("parameter", "gradient", "metric")
"""Those whose one value is what they are named after."""


class EventLines:
    """Draws events in columns whose widths the paths and kinds of a watch settle beforehand.

    Parameters and metrics have longer names than the modules of a watch: their column widens as they come.
    """

    def __init__(self, paths: Sequence[str], hooks: Sequence[str]) -> None:
        longest = max((len(path_text(path)) for path in paths), default=0)
        if "parameter" in hooks or "gradient" in hooks:
            longest += len(".weight")
        self._path_width = min(_WIDEST_PATH, longest)
        self._hook_width = max(map(len, hooks), default=0)

    def line(self, event: Event) -> str:
        """The event on one line: step, path, hook, then each value with what is known of it."""
        path = path_text(event.path)
        self._path_width = max(self._path_width, min(_WIDEST_PATH, len(path)))
        head = (
            styled(f"step {event.step:>6,}", dim=True),
            styled(path.ljust(self._path_width), bold=True),
            styled(event.hook.ljust(self._hook_width), fg="cyan"),
        )
        marks = [f"call {event.call}"] if event.call else []
        marks += ["recomputed"] if event.recompute else []
        shown = _value_alone if event.hook in _BOUNDARY_HOOKS else _value
        values = " | ".join(map(shown, event.values))
        tail = [values, *(styled(mark, dim=True) for mark in marks)]
        return "  ".join((*head, *tail)).rstrip()


def _value(value: ValueInfo) -> str:
    name = f"{value.role}.{one_line(value.key)}" if value.key else value.role
    return f"{name} {_facts(value)}"


def _value_alone(value: ValueInfo) -> str:
    return _metric(value) if value.role == "metric" else _facts(value)


def _metric(value: ValueInfo) -> str:
    """The number itself, however it came; where it did not, its dtype."""
    stats = value.stats
    if stats is not None and (stats.nan or stats.inf):
        return styled("nan" if stats.nan else "inf", fg="red", bold=True)
    if stats is not None and stats.mean is not None:
        return number(stats.mean, _DIGITS)
    if value.array is not None and not isinstance(value.array, TensorData):
        return number(value.array.item(), _DIGITS)
    return _facts(value)


def _facts(value: ValueInfo) -> str:
    if value.dtype is None:
        return styled(one_line(value.note) or "None", dim=True)
    parts = [shape_text(value.shape), styled(value.dtype, dim=True)]
    if value.stats is not None:
        parts.append(_stats(value.stats))
    if value.histogram is not None:
        parts.append(f"|{sparkline(value.histogram)}|")
    if value.sample is not None:
        parts.append(_sample(value.sample))
    if value.array is not None:
        parts.append(_elements(value.array))
    if value.note:
        parts.append(styled(one_line(value.note), dim=True))
    return " ".join(parts)


def _stats(stats: Stats) -> str:
    shown = [
        f"{styled(name, dim=True)} {number(amount)}"
        for name in ("mean", "std", "min", "max", "norm")
        if (amount := getattr(stats, name)) is not None
    ]
    alarms = [
        styled(f"{name} {amount:,}", fg="red", bold=True)
        for name in ("nan", "inf")
        if (amount := getattr(stats, name))
    ]
    return "  ".join((*shown, *alarms))


def _sample(sample: Sample) -> str:
    error = "" if sample.mean_error is None else f", mean +- {number(sample.mean_error)}"
    return styled(f"of {sample.elements:,} elements{error}", dim=True)


def _elements(array: object) -> str:
    """The first elements of an array, flat."""
    if isinstance(array, TensorData):
        return f"{len(array.data):,} bytes"
    import numpy

    flat = numpy.asarray(array).reshape(-1)
    shown = ", ".join(str(element) for element in flat[:_ELEMENTS_SHOWN])
    return f"[{shown}{', ...' if flat.size > _ELEMENTS_SHOWN else ''}]"
