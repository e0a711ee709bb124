"""Records in columns, on a terminal and off it."""

from __future__ import annotations

import io
import re

import pytest

from modscope_client.cli.table import Column, print_table

COLUMNS: list[Column[tuple[str, int]]] = [
    Column("NAME", lambda r: r[0], style="bold"),
    Column("COUNT", lambda r: str(r[1]), right=True, secondary=1),
    Column("NOTE", lambda r: "odd" if r[1] % 2 else "", style="dim", secondary=1, optional=True),
]
ESCAPE = re.compile(r"\x1b\[[0-9;]*m")


class Terminal(io.StringIO):
    """Text that takes itself for a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.fixture
def width(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "40")
    return monkeypatch


def drawn(out: io.StringIO, rows: list[tuple[str, int]]) -> list[str]:
    print_table(out, COLUMNS, rows)
    return [line.rstrip() for line in ESCAPE.sub("", out.getvalue()).splitlines()]


def test_plain_columns_are_aligned_and_nothing_is_cut() -> None:
    out = io.StringIO()
    lines = drawn(out, [("a" * 100, 2), ("b", 1001)])
    assert lines[0] == "NAME" + " " * 98 + "COUNT  NOTE"
    assert lines[1] == "a" * 100 + "      2  -"
    assert lines[2] == "b" + " " * 99 + "   1001  odd"
    assert "\x1b" not in out.getvalue()


def test_a_column_where_nothing_stands_is_left_out() -> None:
    assert drawn(io.StringIO(), [("a", 2)]) == ["NAME  COUNT", "a         2"]


def test_a_terminal_gets_colour_and_the_same_words(width: pytest.MonkeyPatch) -> None:
    out = Terminal()
    assert drawn(out, [("a", 2), ("b", 1001)]) == ["NAME  COUNT  NOTE", "a         2  -", "b      1001  odd"]
    assert "\x1b[1m" in out.getvalue()


def test_no_color_is_honoured(width: pytest.MonkeyPatch) -> None:
    width.setenv("NO_COLOR", "1")
    out = Terminal()
    print_table(out, [Column("NAME", lambda r: r[0], style="cyan")], [("a", 1)])
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", out.getvalue())


def test_a_narrow_terminal_loses_secondary_columns_first_then_cuts(width: pytest.MonkeyPatch) -> None:
    assert drawn(Terminal(), [("a" * 34, 1)])[1] == "a" * 34
    cut = drawn(Terminal(), [("a" * 60, 1)])[1]
    assert cut == "a" * 39 + "…"


def test_a_name_is_no_markup_and_no_style(width: pytest.MonkeyPatch) -> None:
    assert drawn(Terminal(), [("[red]x[/red]", 2)])[1].startswith("[red]x[/red]")


def test_a_long_listing_does_not_go_through_rich(width: pytest.MonkeyPatch) -> None:
    out = Terminal()
    print_table(out, COLUMNS, [("a", 2)] * 3000)
    assert "\x1b" not in out.getvalue()
    assert out.getvalue().count("\n") == 3001
