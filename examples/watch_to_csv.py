"""Stream what hooks see of a running model into a CSV file, one row per value.

    python examples/watch_to_csv.py activations.csv --glob 'features.*' --type ReLU --events 200

Needs only the client: it runs where torch is not installed, and finds the server on this host or
through MODSCOPE_ADDRESS and MODSCOPE_TOKEN.
"""

from __future__ import annotations

import argparse
import csv
import itertools
from collections.abc import Sequence
from pathlib import Path

from modscope_client import connect

__all__ = ["COLUMNS", "main"]

COLUMNS = ["step", "path", "hook", "role", "key", "mean", "std", "min", "max", "norm", "zeros", "nan", "inf"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Watches until `--events` events have come, then tells how many rows were written."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--glob", default="*", help="which modules, by path")
    parser.add_argument("--type", help="which modules, by class")
    parser.add_argument(
        "--hook",
        action="append",
        choices=["forward_pre", "forward", "backward_pre", "backward", "parameter", "gradient", "metric"],
    )
    parser.add_argument("--every", type=int, default=1, help="only every so many steps")
    parser.add_argument("--events", type=int, default=100, help="end after so many events")
    options = parser.parse_args(arguments)

    rows = dropped = 0
    with (
        options.file.open("w", newline="", encoding="utf-8") as file,
        connect() as client,
        client.model().watch(
            options.glob,
            type=options.type,
            hooks=tuple(options.hook or ["forward"]),
            payload="stats",
            every=options.every,
        ) as events,
    ):
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for event in itertools.islice(events, options.events):
            dropped = event.dropped
            for value in event.values:
                if value.stats is not None:
                    numbers = [getattr(value.stats, column) for column in COLUMNS[5:]]
                    writer.writerow([event.step, event.path, event.hook, value.role, value.key, *numbers])
                    rows += 1
    print(f"{rows} rows in {options.file}; {dropped} events dropped")


if __name__ == "__main__":
    main()
