"""Conditions drawn at random: their tree, their text, and what plain Python makes of that text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

from modscope_server.runtime.breaks.syntax import (
    Arithmetic,
    Comparison,
    Junction,
    Metric,
    Negative,
    Node,
    Not,
    Number,
    NumberNode,
    Statistic,
    Step,
    TruthNode,
)

__all__ = ["METRICS", "Known", "conditions", "text_of", "truth_of"]

METRICS = ("loss", "val/acc", "a.b.c", "top-5 acc", 'say "hi" \\ there', "step", "nan", "and")


class Known:
    """Sources that are a table."""

    def __init__(self, metrics: Mapping[str, float | None], step: int = 0) -> None:
        self.metrics = metrics
        self.step = step

    def metric(self, name: str) -> float | None:
        return self.metrics.get(name)

    def statistic(self, statistic: Statistic) -> float | None:
        return self.metrics.get(str(statistic))


def _above(inner: st.SearchStrategy[NumberNode]) -> st.SearchStrategy[NumberNode]:
    def ranked(operators: str) -> st.SearchStrategy[Arithmetic]:
        rest = st.lists(st.tuples(st.sampled_from(operators), inner), min_size=1, max_size=3)
        return st.builds(Arithmetic, inner, rest.map(tuple))

    return st.one_of(st.builds(Negative, inner), ranked("+-"), ranked("*/"))


_numbers: st.SearchStrategy[NumberNode] = st.recursive(
    st.one_of(
        st.floats(min_value=0, allow_nan=False).map(Number),
        st.just(Number(math.inf)),
        st.just(Step()),
        st.sampled_from(METRICS).map(Metric),
        st.builds(
            Statistic,
            st.sampled_from(("value", "grad", "forward", "forward_pre", "backward", "backward_pre")),
            st.sampled_from(("count", "mean", "std", "min", "max", "norm", "zeros", "nan", "inf")),
            st.sampled_from(("*", "encoder.{0,1}.[!w]eight", "a\\*b", "model/*", "odd) \\(name")),
        ),
    ),
    _above,
    max_leaves=6,
)
_comparisons = st.builds(
    Comparison,
    _numbers,
    st.lists(
        st.tuples(st.sampled_from(("<", "<=", ">", ">=", "==", "!=")), _numbers), min_size=1, max_size=3
    ).map(tuple),
)
conditions: st.SearchStrategy[TruthNode] = st.recursive(
    _comparisons,
    lambda inner: st.one_of(
        st.builds(Not, inner),
        st.builds(
            Junction, st.sampled_from(("and", "or")), st.lists(inner, min_size=2, max_size=3).map(tuple)
        ),
    ),
    max_leaves=6,
)


def text_of(node: Node) -> str:
    """The condition with all its parentheses, in our grammar."""
    return _rendered(node, lambda name: _quoted(name))


def truth_of(node: TruthNode, known: Known) -> Any:
    """What Python says, whose numbers are IEEE's too, as long as nothing is divided by zero."""
    names: dict[str, Any] = {"inf": math.inf, "nan": math.nan, "step": known.step}
    names["lookup"] = lambda name: known.metrics[name]
    return eval(_rendered(node, lambda name: f"lookup({name!r})"), {"__builtins__": {}}, names)


def _rendered(node: Node, metric: Any) -> str:
    def inner(one: Node) -> str:
        return f"({_rendered(one, metric)})"

    if isinstance(node, Number):
        return repr(node.value)
    if isinstance(node, Step):
        return "step"
    if isinstance(node, Metric):
        return str(metric(node.name))
    if isinstance(node, Statistic):
        if metric("x") == _quoted("x"):
            return str(node).replace(node.selector, _quoted(node.selector))
        return str(metric(str(node)))
    if isinstance(node, Negative):
        return f"-{inner(node.operand)}"
    if isinstance(node, Not):
        return f"not {inner(node.operand)}"
    if isinstance(node, Junction):
        return f" {node.word} ".join(map(inner, node.parts))
    return inner(node.first) + "".join(f" {sign} {inner(operand)}" for sign, operand in node.rest)


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
