"""A whole state_dict, beside a raw grpcio byte stream of the same size.

Ours is `model.state_dict()` from the call to the last array, so it holds the wait for the safe
point, the snapshot and the arrays' fresh memory. The peer sends bytes that were made beforehand,
and is read into one buffer that was there before. Memory is taken in processes of their own.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import peers
from benchmarks.measure import Bar, Effort, Row, measure, quantity, ratio
from benchmarks.processes import Child, answer, forget_peak, peak_memory, workplace
from modscope_client import connect

__all__ = ["main", "run"]

_MIB = 1 << 20
_SPARE = 64 * _MIB


def run(quick: bool) -> list[Row]:
    """Throughput of state_dict and save_state_dict, and memory of both sides."""
    mebibytes, effort = (64, Effort(3, 6, 5.0)) if quick else (512, Effort(20, 200, 150.0))
    with workplace() as place, Child("benchmarks.models", "bulk", str(mebibytes)) as server:
        size = _size(server)
        with Child("benchmarks.peers", str(place / "raw.sock"), str(size)) as raw:
            rows = _throughput(server, raw, size, place, effort, quick)
        rows += _memory(size)
    return rows


def _size(server: Child) -> int:
    """Bytes of the state_dict; every array of it is read once."""
    with connect(server.hello["address"], token=server.hello["token"]) as client:
        return _bytes_of(client.model().state_dict())


def _throughput(server: Child, raw: Child, size: int, place: Path, effort: Effort, quick: bool) -> list[Row]:
    file = place / "model.safetensors"
    stream = peers.Stream(raw.hello["address"], size)
    with connect(server.hello["address"], token=server.hello["token"]) as client:
        model = client.model()

        def read() -> float:
            began = time.perf_counter()
            arrays = model.state_dict()
            taken = time.perf_counter() - began
            assert _bytes_of(arrays) == size
            return taken

        def save() -> float:
            began = time.perf_counter()
            model.save_state_dict(file)
            return time.perf_counter() - began

        def peer() -> float:
            began = time.perf_counter()
            assert stream.read() == size
            return time.perf_counter() - began

        read_pairs = measure(read, peer, effort)
        save_pairs = measure(save, peer, Effort(3, 3 if quick else 12, 20.0))
    stream.close()
    mebibytes = size // _MIB

    def speeds(ours: list[float], others: list[float]) -> str:
        return f"{_rate(ours, size):.2f} beside {_rate(others, size):.2f} GB/s"

    return [
        ratio(
            f"state_dict() of {mebibytes} MiB, throughput beside a raw byte stream",
            read_pairs,
            bar=Bar(0.85, at_least=True),
            detail=speeds(read_pairs.ours, read_pairs.peers),
            invert=True,
        ),
        ratio(
            f"save_state_dict(file) of {mebibytes} MiB, throughput beside a raw byte stream",
            save_pairs,
            bar=None,
            detail=speeds(save_pairs.ours, save_pairs.peers),
            invert=True,
        ),
    ]


def _bytes_of(arrays: Mapping[str, Any]) -> int:
    return sum(array.nbytes for array in arrays.values())


def _rate(seconds: list[float], size: int) -> float:
    return size / sorted(seconds)[len(seconds) // 2] / 1e9


def _memory(size: int) -> list[Row]:
    bar = Bar((size + _SPARE) / _MIB)
    with (
        Child("benchmarks.models", "bulk", str(size // _MIB)) as fresh,
        Child("benchmarks.bulk_read", fresh.hello["address"], fresh.hello["token"]) as reader,
    ):
        idle = fresh.ask("forget_peak")
        client_idle = reader.ask("forget_peak")
        reader.ask("read")
        client_peak, server_peak = reader.ask("peak"), fresh.ask("peak")
    return [
        quantity(
            "the same, client's peak memory over idle",
            (client_peak - client_idle) / _MIB,
            "MiB",
            bar=bar,
            detail=f"{client_peak / _MIB:.0f} MiB in all, {client_idle / _MIB:.0f} connected and idle",
        ),
        quantity(
            "the same, server's peak memory over idle",
            (server_peak - idle) / _MIB,
            "MiB",
            bar=bar,
            detail=f"{server_peak / _MIB:.0f} MiB in all, {idle / _MIB:.0f} idle",
        ),
    ]


def main() -> None:
    """A client that reads when it is told to, and tells its memory."""
    with connect(sys.argv[1], token=sys.argv[2]) as client:
        model = client.model()

        def read() -> int:
            return _bytes_of(model.state_dict())

        answer({}, {"forget_peak": forget_peak, "read": read, "peak": peak_memory})


if __name__ == "__main__":
    main()
