"""Statistics, histogram and sample of a value -> their fields of ValueInfo, joined by hand."""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy

from modscope.fields import doubles, integer, integers, message, real, tag, varint
from modscope_server.inspection.partial_sums import record
from modscope_server.inspection.records import HistogramRecord, SampleRecord, StatsRecord
from modscope_server.inspection.row_reduction import Rows
from modscope_server.inspection.statistics import Later, Reduction
from modscope_server.runtime.drafts import figures_of

__all__ = ["figures"]

# ValueInfo
_STATS = tag(5, 2)
# Stats: mean, std, min, max, norm, each with its tag
_TAGS = (0x11, 0x19, 0x21, 0x29, 0x31)
_MOMENTS = struct.Struct("<BdBdBdBdBd")
_COLUMNS = ("mean", "std", "low", "high", "norm")
_TABLE = numpy.dtype([field for name in _COLUMNS for field in ((f"tag of {name}", "u1"), (name, "<f8"))])
_ROW: Any = numpy.array([tuple(number for each in _TAGS for number in (each, 0.0))], _TABLE)


def figures(reduction: Reduction) -> tuple[bytes, str]:
    """The fields, and why there are none. Away from the CPU this waits for the device."""
    parts = reduction.parts
    if isinstance(parts, Later):
        rows, row = parts.row()
        if rows.encoded is None:
            rows.encoded = _rows(rows)
        return rows.encoded[row], ""
    stats, histogram, sample, loss = figures_of(reduction)
    fields = b"" if stats is None else _stats(stats)
    if histogram is not None:
        fields += message(6, _histogram(histogram))
    if sample is not None:
        fields += message(9, _sample(sample))
    return fields, loss


def _rows(rows: Rows) -> list[bytes]:
    """The statistics of all rows, their numbers laid out at once."""
    table = numpy.repeat(_ROW, len(rows))
    table["mean"], table["std"] = rows.means, rows.devs / math.sqrt(rows.count)
    table["low"], table["high"], table["norm"] = rows.lows, rows.highs, rows.norms
    moments, size, count = table.tobytes(), _TABLE.itemsize, integer(1, rows.count)
    head = _STATS + varint(len(count) + size) + count
    encoded = [head + moments[start : start + size] for start in range(0, size * len(rows), size)]
    for row, zeros in enumerate(rows.zeros):
        if zeros:
            start = size * row
            body = count + moments[start : start + size] + integer(7, zeros)
            encoded[row] = _STATS + varint(len(body)) + body
    for row, part in rows.own.items():
        encoded[row] = _stats(record(rows.count, False, part))
    return encoded


def _stats(record: StatsRecord) -> bytes:
    count, mean, std, low, high, norm, zeros, nan, inf = record
    head = integer(1, count)
    if mean is None or std is None or low is None or high is None or norm is None:
        some = [real(number, value) for number, value in enumerate(record[1:6], 2) if value is not None]
        moments = b"".join(some)
    else:
        a, b, c, d, e = _TAGS
        moments = _MOMENTS.pack(a, mean, b, std, c, low, d, high, e, norm)
    rest = b"" if not (zeros or nan or inf) else integer(7, zeros) + integer(8, nan) + integer(9, inf)
    return b"".join((_STATS, varint(len(head) + len(moments) + len(rest)), head, moments, rest))


def _histogram(record: HistogramRecord) -> bytes:
    return doubles(1, record.edges) + integers(2, record.counts)


def _sample(record: SampleRecord) -> bytes:
    error = b"" if record.mean_error is None else real(2, record.mean_error)
    return integer(1, record.elements) + error
