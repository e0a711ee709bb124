"""Bars over columns of equal width, from buckets that are not."""

from __future__ import annotations

import pytest

from modscope_client.cli.sparkline import sparkline
from modscope_client.types import Histogram

LOW, HALF, FULL = "\u2581", "\u2585", "\u2588"


@pytest.mark.parametrize(
    ("edges", "counts", "bars"),
    [
        ((0.0, 1.0, 2.0, 3.0, 4.0), (8, 0, 4, 1), FULL + " " + HALF + "\u2582"),
        ((0.0, 2.0, 4.0), (10, 10), FULL * 4),
        ((0.0, 1.0, 4.0), (30, 3), FULL + LOW * 3),
        ((-8.0, -6.0, 0.0), (0, 5), " " + FULL * 3),
        ((0.0, 3.5, 4.0), (0, 5), "   " + FULL),
        ((5.0, 5.0), (3,), FULL),
        ((0.0, 2.0, 2.0, 4.0), (0, 5, 0), "  " + FULL + " "),
        ((-1.7e308, 0.0, 1.7e308), (1, 1), FULL * 4),
        ((0.0, 5e-324), (1,), FULL),
    ],
    ids=["even", "wide", "uneven", "empty", "edge", "equal", "point", "huge", "tiny"],
)
def test_bars(edges: tuple[float, ...], counts: tuple[int, ...], bars: str) -> None:
    assert sparkline(Histogram(edges, counts), 4) == bars
