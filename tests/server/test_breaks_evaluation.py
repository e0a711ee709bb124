"""Conditions give what plain Python gives for the same text, and three answers where something is unknown."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from modscope_server.runtime.breaks.evaluation import evaluate
from modscope_server.runtime.breaks.parser import parse
from modscope_server.runtime.breaks.syntax import Metric, Statistic, TruthNode, leaves
from tests.server.break_texts import METRICS, Known, conditions, truth_of

_values = st.one_of(st.floats(), st.integers(-3, 3).map(float))


@given(conditions, st.data())
def test_conditions_give_what_python_gives(tree: TruthNode, data: st.DataObject) -> None:
    names = {leaf.name if isinstance(leaf, Metric) else str(leaf) for leaf in leaves(tree)}
    known = Known({name: data.draw(_values) for name in sorted(names | set(METRICS))}, step=7)
    try:
        expected = truth_of(tree, known)
    except ZeroDivisionError:
        assume(False)
        raise
    assert evaluate(tree, known) is expected


@given(conditions, st.data())
def test_an_answer_does_not_turn_on_what_is_unknown(tree: TruthNode, data: st.DataObject) -> None:
    names = sorted({leaf.name if isinstance(leaf, Metric) else str(leaf) for leaf in leaves(tree)})
    partly = {name: data.draw(st.none() | _values) for name in names}
    answer = evaluate(tree, Known(partly))
    full = {name: data.draw(_values) if value is None else value for name, value in partly.items()}
    if answer is not None:
        assert evaluate(tree, Known(full)) is answer
    if None not in partly.values():
        assert answer is not None


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("x != x", True),
        ("x == x", False),
        ("not x > 1", True),
        ("1 / 0 == inf", True),
        ("-1 / 0 == -inf", True),
        ("0 / 0 != 0 / 0", True),
        ("1 / -(0) == -inf", True),
        ("nan > 1 or step == 3", True),
        ("1e308 * 10 == inf", True),
        ("unknown > 1", None),
        ("not unknown > 1", None),
        ("unknown > 1 or step == 3", True),
        ("unknown > 1 and step == 4", False),
        ("unknown > 1 and step == 3", None),
        ("unknown < 1 < 0", False),
        ("0 < unknown", None),
        ("unknown - unknown == 0", None),
        ("grad.norm(*) > 0", None),
    ],
)
def test_nan_is_ieee_and_the_unknown_is_neither(text: str, answer: bool | None) -> None:
    assert evaluate(parse(text), Known({"x": math.nan}, step=3)) is answer


def test_statistics_are_asked_for_by_what_they_are_of() -> None:
    asked: list[Statistic] = []

    class Asked(Known):
        def statistic(self, statistic: Statistic) -> float | None:
            asked.append(statistic)
            return 1.0

    assert evaluate(parse("grad.norm(a.*) + nan(forward:b) == 2"), Asked({}))
    assert asked == [Statistic("grad", "norm", "a.*"), Statistic("forward", "nan", "b")]
