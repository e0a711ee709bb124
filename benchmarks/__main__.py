"""`python -m benchmarks [NAME...] [--quick] [--json FILE]`: measure, print one table, write JSON."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.claims import CLAIMS, chosen, measured
from benchmarks.measure import Row

__all__ = ["main"]

_RESULTS = Path(__file__).parent / "results" / "bench.json"
_HEADINGS = ("claim", "measured", "95 % interval", "bar", "holds", "pairs", "medians")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 where a bar does not hold."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"which of {', '.join(CLAIMS)} (default: all); watch means all that begin with it",
    )
    parser.add_argument("--quick", action="store_true", help="small sizes and few pairs: shows that it runs")
    parser.add_argument(
        "--json", type=Path, default=_RESULTS, metavar="FILE", help="where to write the results"
    )
    options = parser.parse_args(arguments)
    try:
        names = chosen(options.names)
    except ValueError as error:
        parser.error(str(error))
    rows: list[Row] = []
    for name in names:
        print(f"{name} ...", file=sys.stderr, flush=True)
        began = time.monotonic()
        rows += measured(name, quick=options.quick)
        print(f"{name} took {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    print("\n".join(_table(rows)))
    if options.quick:
        print("quick: too few pairs and too small sizes for a verdict")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(_report(rows, options.quick), indent=2) + "\n")
    return 1 if not options.quick and any(row.verdict == "no" for row in rows) else 0


def _table(rows: Sequence[Row]) -> list[str]:
    lines = [_HEADINGS, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEADINGS))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]


def _cells(row: Row) -> tuple[str, ...]:
    if row.verdict == "absent":
        measured, spread = "", ""
    elif row.pairs:
        measured, spread = f"{row.value:.3f}x", f"{row.low:.3f} .. {row.high:.3f} ({row.width:.1%})"
    else:
        measured, spread = f"{row.value:.0f} {row.unit}", ""
    return row.name, measured, spread, str(row.bar or ""), row.verdict, str(row.pairs or ""), row.detail


def _report(rows: Sequence[Row], quick: bool) -> dict[str, Any]:
    return {
        "quick": quick,
        "time": time.time(),
        "machine": {
            "platform": platform.platform(),
            "cores": os.cpu_count(),
            "load": math.nan if not hasattr(os, "getloadavg") else os.getloadavg()[0],
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "grpcio", "protobuf", "numpy", "modscope")},
        },
        "rows": [_fields(row) for row in rows],
    }


def _fields(row: Row) -> dict[str, Any]:
    """What JSON can hold of a row: null where there is no number."""
    fields = {**asdict(row), "width": row.width, "verdict": row.verdict}
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in fields.items()
    }


if __name__ == "__main__":
    sys.exit(main())
