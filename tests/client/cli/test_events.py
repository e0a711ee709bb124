"""Events as lines."""

from __future__ import annotations

import math
import re

import numpy
import pytest

from modscope.tensor import TensorData
from modscope_client.cli.events import EventLines
from modscope_client.types import Event, Stats, ValueInfo

STATS = Stats(4, 0.25, 1.5, -1.0, 2.0, 3.0, 0, 0, 0)


def event(
    *values: ValueInfo, call: int = 0, recompute: bool = False, path: str = "conv1", hook: str = "forward"
) -> Event:
    return Event(0, 1204, "m", path, "Conv2d", hook, call, 0.0, list(values), 0, path, recompute)


def line(shown: Event) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", EventLines(["conv1", "features.2"], ["forward"]).line(shown))


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (
            [ValueInfo("output", "", (4,), "float32", STATS)],
            "output [4] float32 mean 0.25  std 1.5  min -1  max 2  norm 3",
        ),
        ([ValueInfo("output", "", None, None)], "output None"),
        (
            [ValueInfo("grad_input", "0", None, None, note="in-place module")],
            "grad_input.0 in-place module",
        ),
        (
            [ValueInfo("input", "0", (2,), "int64"), ValueInfo("input", "mask", (), "bool")],
            "input.0 [2] int64 | input.mask [] bool",
        ),
        (
            [ValueInfo("output", "", (8,), "float32", array=numpy.arange(8.0))],
            "output [8] float32 [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, ...]",
        ),
        (
            [ValueInfo("output", "", (3,), "float4", array=TensorData("float4", (3,), b"ab"))],
            "output [3] float4 2 bytes",
        ),
        ([], ""),
    ],
)
def test_one_event_is_one_line(values: list[ValueInfo], told: str) -> None:
    assert line(event(*values)) == f"step  1,204  conv1       forward  {told}".rstrip()


@pytest.mark.parametrize("hook", ["parameter", "gradient"])
def test_the_value_of_a_parameter_is_not_named_twice(hook: str) -> None:
    seen = ValueInfo(hook, "", (4,), "float32", STATS)
    none = ValueInfo(hook, "", None, None, note="no gradient: frozen")
    told = line(event(seen, path="conv1.weight", hook=hook))
    assert told == f"step  1,204  conv1.weight  {hook}  [4] float32 mean 0.25  std 1.5  min -1  max 2  norm 3"
    assert line(event(none, path="conv1.bias", hook=hook)).endswith(f"{hook}  no gradient: frozen")


def number_stats(value: float | None, nan: int = 0, inf: int = 0) -> Stats:
    return Stats(1, value, 0.0, value, value, value, 0, nan, inf)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (ValueInfo("metric", "", (), "float64", number_stats(0.1234567)), "0.123457"),
        (ValueInfo("metric", "", (), "float64", number_stats(None, nan=1)), "nan"),
        (ValueInfo("metric", "", (), "float64", number_stats(None, inf=1)), "inf"),
        (ValueInfo("metric", "", (), "float64", array=numpy.array(-2.5)), "-2.5"),
        (ValueInfo("metric", "", (), "float64"), "[] float64"),
    ],
)
def test_a_metric_is_its_number(value: ValueInfo, told: str) -> None:
    assert line(event(value, path="loss", hook="metric")) == f"step  1,204  loss        metric   {told}"


def test_a_column_widens_where_a_parameter_needs_it() -> None:
    lines = EventLines(["conv1"], ["forward", "parameter"])
    value = ValueInfo("parameter", "", (4,), "float32")
    first = lines.line(event(value, path="conv1.weight", hook="parameter"))
    second = lines.line(event(ValueInfo("output", "", (4,), "float32")))
    assert first.index("parameter") == second.index("forward")


def test_what_is_not_finite_is_counted() -> None:
    sick = Stats(4, None, None, None, None, None, 0, 3, 1)
    shown = line(event(ValueInfo("output", "", (4,), "float32", sick)))
    assert shown.endswith("output [4] float32 nan 3  inf 1")


def test_further_calls_and_recomputations_are_marked() -> None:
    assert line(event(call=2, recompute=True)).endswith("call 2  recomputed")


def test_a_name_cannot_break_the_line() -> None:
    assert "\n" not in line(event(path="a\nb"))


def test_a_nan_in_a_statistic_is_a_number_like_others() -> None:
    odd = Stats(1, math.nan, 0.0, 1.0, 1.0, 1.0, 0, 0, 0)
    assert "mean nan" in line(event(ValueInfo("output", "", (1,), "float32", odd)))
