"""What is said of a watch beside its events."""

from __future__ import annotations

from typing import Any, cast

import pytest

from modscope_client.cli.event_output import tally, watched_text
from modscope_client.types import WatchCounters
from tests.client.exporters.samples import Armed


@pytest.mark.parametrize(
    ("counters", "told"),
    [
        (WatchCounters(1, 0, 0, 0), "1 event"),
        (WatchCounters(1200, 3, 0, 0), "1,200 events, 3 of them dropped"),
        (WatchCounters(5, 0, 0, 0, skipped=40), "5 events, 40 more left out by its rate"),
        (WatchCounters(5, 0, 0, 0, blocked_seconds=0.25), "5 events, for which training waited 0.25 s"),
    ],
)
def test_a_tally(counters: WatchCounters, told: str) -> None:
    assert tally(cast("Any", Armed(counters=counters))) == told


@pytest.mark.parametrize(
    ("hooks", "told"),
    [
        (("forward",), "2 modules"),
        (("gradient", "metric"), "2 modules and reported metrics"),
        (("metric",), "reported metrics"),
    ],
)
def test_what_is_watched(hooks: tuple[str, ...], told: str) -> None:
    assert watched_text(cast("Any", Armed(paths=("a", "b"))), hooks) == told
