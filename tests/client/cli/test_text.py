"""Values as short text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modscope_client.cli import text


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.0K"),
        (1234, "1.2K"),
        (45_300, "45.3K"),
        (999_949, "999.9K"),
        (999_950, "1.0M"),
        (1_800_000_000, "1.8B"),
        (10**15, "1000.0T"),
    ],
)
def test_human_count(count: int, shown: str) -> None:
    assert text.human_count(count) == shown


@given(st.integers(1000, 10**14))
def test_a_human_count_is_right_to_five_percent_and_short(count: int) -> None:
    shown = text.human_count(count)
    scale = {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}[shown[-1]]
    assert float(shown[:-1]) * scale == pytest.approx(count, rel=0.05)
    assert len(shown) <= 6


@pytest.mark.parametrize(
    ("count", "shown"), [(17, "17 B"), (1536, "1.5 KiB"), (512 << 20, "512.0 MiB"), (1 << 40, "1.0 TiB")]
)
def test_byte_count(count: int, shown: str) -> None:
    assert text.byte_count(count) == shown


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("500ms", 0.5), ("10s", 10), ("2m", 120), ("1.5h", 5400), ("7", 7), (".5s", 0.5), (" 3s ", 3)],
)
def test_duration(written: str, seconds: float) -> None:
    assert text.parse_duration(written) == pytest.approx(seconds)


@pytest.mark.parametrize("written", ["", "soon", "-1s", "10 s", "1d", "ms", "1e3", "inf", "nan"])
def test_no_duration(written: str) -> None:
    with pytest.raises(ValueError, match="500ms, 10s, 2m"):
        text.parse_duration(written)


@pytest.mark.parametrize(
    ("seconds", "shown"), [(-3, "0s"), (42.9, "42s"), (425, "7m"), (11_520, "3h12m"), (432_001, "5d")]
)
def test_age(seconds: float, shown: str) -> None:
    assert text.age(seconds) == shown


def test_numbers_and_shapes() -> None:
    assert text.number(None) == "-"
    assert text.number(0.0001234567) == "0.000123"
    assert text.number(1.25, 6) == "1.25"
    assert text.number(float("nan")) == "nan"
    assert text.shape_text((64, 3)) == "[64, 3]"
    assert text.shape_text(()) == "[]"
    assert text.shape_text(None) == "-"
    assert text.plural(1, "module") == "1 module"
    assert text.plural(1200, "module") == "1,200 modules"


def test_a_name_can_neither_break_a_line_nor_drive_a_terminal() -> None:
    assert text.one_line("a\nb\x1b[31m\u202e") == "a\\nb\\x1b[31m\\u202e"
    assert text.one_line("été / x") == "été / x"
    assert text.path_text("") == "(root)"
