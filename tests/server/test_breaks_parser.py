"""The grammar of break conditions: what each text means, and where a wrong one goes wrong."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from modscope_server.errors import BadExpression
from modscope_server.runtime.breaks.parser import STATISTICS, parse
from modscope_server.runtime.breaks.syntax import (
    Comparison,
    Metric,
    Node,
    Number,
    Statistic,
    TruthNode,
    leaves,
)
from tests.server.break_texts import conditions, text_of


def compared(name: Node, sign: str, value: float) -> Comparison:
    assert isinstance(name, (Metric, Statistic))
    return Comparison(name, ((sign, Number(value)),))


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("loss > 10", compared(Metric("loss"), ">", 10)),
        ("  val/acc<.5", compared(Metric("val/acc"), "<", 0.5)),
        ("acc.top5 >= 1E-3", compared(Metric("acc.top5"), ">=", 1e-3)),
        ("'top-5 acc' == 1.", compared(Metric("top-5 acc"), "==", 1)),
        ('"step" != 2', compared(Metric("step"), "!=", 2)),
        ("größe > 0", compared(Metric("größe"), ">", 0)),
        ("norm > 2", compared(Metric("norm"), ">", 2)),
        ("norm(*) > 2", compared(Statistic("value", "norm", "*"), ">", 2)),
        (
            "grad.norm(transformer.h.3.*) > 10",
            compared(Statistic("grad", "norm", "transformer.h.3.*"), ">", 10),
        ),
        ("nan(forward:*) > 0", compared(Statistic("forward", "nan", "*"), ">", 0)),
        ("max( backward_pre : {a}[0-9] )>1", compared(Statistic("backward_pre", "max", "{a}[0-9]"), ">", 1)),
        ("inf (forward_pre:a\\)b) > 0", compared(Statistic("forward_pre", "inf", "a\\)b"), ">", 0)),
        ('std("a (b)") > 0', compared(Statistic("value", "std", "a (b)"), ">", 0)),
        ("mean(generator/*) < 0", compared(Statistic("value", "mean", "generator/*"), "<", 0)),
        ("((loss)) > 1", compared(Metric("loss"), ">", 1)),
        ("loss\n>\t+1", compared(Metric("loss"), ">", 1)),
    ],
)  # fmt: skip
def test_texts_mean_what_they_say(text: str, meant: TruthNode) -> None:
    assert parse(text) == meant


@pytest.mark.parametrize(
    ("short", "full"),
    [
        ("a < 1 or b < 1 and not c < 1", "(a < 1) or ((b < 1) and (not (c < 1)))"),
        ("not a < 1 and b < 1", "(not (a < 1)) and (b < 1)"),
        ("a + b * c - d < e / 2", "((a + (b * c)) - d) < (e / 2)"),
        ("-a * b < -1", "((-a) * b) < (-1)"),
        ("a/2 < b / c", "(a / 2) < (b / c)"),
        ("a < b <= c != d", "a < (b) <= (c) != (d)"),
    ],
)
def test_operators_bind_as_in_python(short: str, full: str) -> None:
    def folded(text: str) -> str:
        return text_of(parse(text)).replace("(", "").replace(")", "")

    assert folded(short) == folded(full)
    assert list(leaves(parse(short))) == list(leaves(parse(full)))


@pytest.mark.parametrize(
    ("text", "column", "says"),
    [
        ("", 1, "found the end"),
        ("loss", 1, "a number is no condition"),
        ("not loss", 5, "a number is no condition"),
        ("loss > 1 and loss", 14, "a number is no condition"),
        ("(loss > 1) + 1 > 2", 1, "a condition is no number"),
        ("1 + (loss > 1) > 2", 5, "a condition is no number"),
        ("(a > 1) > 0", 1, "a condition is no number"),
        ("loss = 3", 6, "'=' has no meaning"),
        ("loss > 1 && loss < 2", 10, "'&' has no meaning"),
        ("loss ** 2 > 1", 7, "expected a number"),
        ("loss > 1 loss", 10, "expected an operator or the end, found 'loss'"),
        ("(loss > 1", 10, "closing parenthesis, found the end"),
        ("loss > 1)", 9, "found ')'"),
        ("3x > 1", 2, "a number goes on as a name"),
        ("'loss > 1", 1, "this quote is never closed"),
        ("'' > 1", 1, "a metric has a name"),
        ("norm() > 1", 6, "a selector is missing"),
        ("norm(* > 1", 11, "is not closed"),
        ("norm('a' b) > 1", 10, "is not closed"),
        ("norm({a) > 1", 6, "without its }"),
        ("open(x) > 1", 1, "there is no function 'open'"),
        ("loss.item() > 1", 1, "there is no function 'loss.item'"),
        ("step(1) > 1", 1, "there is no function 'step'"),
        ("grad.norm(forward:*) > 1", 1, "grad. is of parameters"),
        ("loss > and", 8, "found 'and'"),
        ("loss > 1 or", 12, "found the end"),
        ("__import__('os') > 1", 1, "there is no function '__import__'"),
        ("loss > [1]", 8, "'[' has no meaning"),
        ("(" * 60 + "a > 1" + ")" * 60, 41, "levels deep"),
        ("not " * 60 + "a > 1", 161, "levels deep"),
        ("-" * 60 + "1 > 1", 41, "levels deep"),
    ],
)
def test_mistakes_are_pointed_at(text: str, column: int, says: str) -> None:
    with pytest.raises(BadExpression, match=r"\S") as caught:
        parse(text)
    error = caught.value
    message, shown, pointer = error.message.split("\n")
    assert says in message
    assert f"column {column}" in message
    assert error.details["column"] == str(column)
    assert error.field == "expression"
    assert error.hint
    assert pointer.strip() == "^"
    under = shown[pointer.index("^") : pointer.index("^") + 1]
    assert under == text[column - 1 : column]


def test_the_examples_of_the_page_are_conditions() -> None:
    page = (Path(__file__).parents[2] / "docs" / "breaks.md").read_text()
    examples = re.findall(r"^modscope run break '(.*)'$", page, re.MULTILINE)
    assert len(examples) >= 4
    for text in examples:
        assert parse(text)


def test_the_length_is_bounded_and_long_chains_are_not_deep() -> None:
    long = " + ".join(["1"] * 499) + " > 2"
    assert parse(long)
    assert parse(" and ".join(["a > 1"] * 200))
    with pytest.raises(BadExpression, match="2,001 characters"):
        parse(" " * 2001)


_pieces = st.sampled_from(
    [
        *STATISTICS,
        *("grad.", "forward:", "backward_pre:", "and", "or", "not", "step", "loss", "val/acc", "1e-3", ".5"),
        *"()<>=!+-*/\"'\\{}[],.:;&|%^~@#$\n\t\0é… _x0",
        *("<=", "==", "!=", " ", "  ", "**", "//"),
    ]
)


@given(st.one_of(st.text(max_size=60), st.lists(_pieces, max_size=30).map("".join)))
@example("nan(\\")
@example("norm(a\\")
@example("'\\")
@example("9" * 500 + " > 1")
def test_no_text_raises_anything_else(text: str) -> None:
    with contextlib.suppress(BadExpression):
        parse(text)


@given(conditions)
def test_every_tree_can_be_written_and_read_back(tree: TruthNode) -> None:
    assert parse(text_of(tree)) == tree
