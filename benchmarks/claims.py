"""The claims by name, each measured in a process of its own."""

from __future__ import annotations

import importlib
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

from benchmarks.measure import Row

__all__ = ["CLAIMS", "measured", "run"]

CLAIMS = {
    "bulk": "bulk_read",
    "small": "small_read",
    "listing": "listing",
    "idle": "idle_step",
    "stall": "stall",
    "watch": "watch_stats",
    "cli": "cli_start",
}
"""Module of each claim."""


def measured(name: str, *, quick: bool) -> list[Row]:
    """The rows of a claim, from a fresh process: none inherits another's memory or threads."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(run, name, quick).result()


def run(name: str, quick: bool) -> list[Row]:
    """The rows of a claim, measured here."""
    rows: list[Row] = importlib.import_module(f"benchmarks.{CLAIMS[name]}").run(quick)
    return rows
