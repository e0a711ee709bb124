"""The claims by name, each measured in a process of its own."""

from __future__ import annotations

import importlib
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

from benchmarks.measure import Row

__all__ = ["CLAIMS", "chosen", "measured", "run"]

CLAIMS = {
    "bulk": "bulk_read",
    "small": "small_read",
    "listing": "listing",
    "idle": "idle_step",
    "stall": "stall",
    "cli": "cli_start",
    "watch-stats": "watch_stats",
    "watch-histograms": "watch_histograms",
    "watch-tenth": "watch_tenth",
    "watch-small": "watch_small",
    "watch-stopped": "watch_stopped",
    "watch-fanout": "watch_fanout",
    "watch-tensors": "watch_tensors",
    "watch-events": "watch_events",
    "watch-forward": "watch_forward",
    "watch-compiled": "watch_compiled",
}
"""Module of each claim."""


def chosen(names: Sequence[str]) -> list[str]:
    """The claims of these names; one without its last part means all of its kind. All where none is given.

    Raises ValueError for a name that no claim has.
    """
    found: dict[str, None] = {}
    for name in names:
        of_name = [claim for claim in CLAIMS if claim == name or claim.startswith(f"{name}-")]
        if not of_name:
            raise ValueError(f"no benchmark {name!r}: choose from {', '.join(CLAIMS)}")
        found.update(dict.fromkeys(of_name))
    return list(found or CLAIMS)


def measured(name: str, *, quick: bool) -> list[Row]:
    """The rows of a claim, from a fresh process: none inherits another's memory or threads."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(run, name, quick).result()


def run(name: str, quick: bool) -> list[Row]:
    """The rows of a claim, measured here."""
    rows: list[Row] = importlib.import_module(f"benchmarks.{CLAIMS[name]}").run(quick)
    return rows
