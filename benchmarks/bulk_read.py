"""A whole state_dict, beside a raw grpcio byte stream, and an Arrow Flight do_get, of the same size.

Ours is `model.state_dict()` from the call to the last array, so it holds the wait for the safe point,
the snapshot and the arrays. The raw peer sends bytes that were made beforehand and is read into one
buffer that was there before; Arrow's bytes stay in the messages that brought them. All servers and
clients are processes of their own. Memory is taken from fresh ones, which have read nothing before.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import sys
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.measure import Bar, Effort, Row, absent, measure, quantity, ratio
from benchmarks.processes import Child, answer, forget_peak, peak_memory, workplace
from modscope_client import connect

__all__ = ["main", "run"]

_MIB = 1 << 20
_SPARE = 64


def run(quick: bool) -> list[Row]:
    """Throughput of state_dict and save_state_dict, and memory of both sides."""
    mebibytes, effort = (64, Effort(3, 6, 5.0)) if quick else (512, Effort(20, 300, 180.0))
    with workplace() as place:
        return _throughput(mebibytes, place, effort, quick) + _memory(mebibytes, place)


def _throughput(mebibytes: int, place: Path, effort: Effort, quick: bool) -> list[Row]:
    with (
        Child("benchmarks.models", "bulk", str(mebibytes)) as server,
        _client(server, place) as client,
        contextlib.ExitStack() as peers,
    ):
        size = client.ask("size")

        def beside(
            word: str, what: str, peer: Child, peers_name: str, effort: Effort, bar: Bar | None
        ) -> Row:
            pairs = measure(lambda: client.ask(word), lambda: peer.ask("read"), effort)
            ours, others = (size / statistics.median(side) / 1e9 for side in (pairs.ours, pairs.peers))
            return ratio(
                f"{what} of {mebibytes} MiB, throughput beside {peers_name}",
                pairs,
                bar=bar,
                detail=f"{ours:.2f} beside {others:.2f} GB/s",
                invert=True,
            )

        read, save = ("read", "state_dict()"), ("save", "save_state_dict(file)")
        raw = _peer("benchmarks.peers", place / "raw.sock", size, peers)
        brief = Effort(3, 3 if quick else 20, 30.0)
        rows = [
            beside(*read, raw, "a raw byte stream", effort, Bar(0.9, at_least=True)),
            beside(*save, raw, "a raw byte stream", brief, None),
        ]
        if find_spec("pyarrow") is None:
            return [*rows, absent("state_dict() beside Arrow Flight's do_get", "pyarrow is not installed")]
        flight = _peer("benchmarks.flight", place / "flight.sock", size, peers)
        return [*rows, beside(*read, flight, "Arrow Flight's do_get", brief, None)]


def _peer(module: str, socket: Path, size: int, peers: contextlib.ExitStack) -> Child:
    """The client of a peer, whose server runs beside it."""
    server = peers.enter_context(Child(module, "serve", str(socket), str(size)))
    return peers.enter_context(Child(module, "read", server.hello["address"], str(size)))


def _memory(mebibytes: int, place: Path) -> list[Row]:
    bar = Bar(mebibytes + _SPARE)
    with (
        Child("benchmarks.models", "bulk", str(mebibytes)) as server,
        _client(server, place) as client,
    ):
        sides = {"server": server, "client": client}
        idle = {side: child.ask("forget_peak") / _MIB for side, child in sides.items()}
        client.ask("read")
        peak = {side: child.ask("peak") / _MIB for side, child in sides.items()}
    return [
        quantity(
            f"state_dict() of {mebibytes} MiB, the {side}'s peak memory over idle",
            peak[side] - idle[side],
            "MiB",
            bar=bar,
            detail=f"{peak[side]:.0f} MiB in all, {idle[side]:.0f} idle",
        )
        for side in sides
    ]


def _client(server: Child, place: Path) -> Child:
    hello = server.hello
    return Child("benchmarks.bulk_read", hello["address"], hello["token"], str(place / "saved.safetensors"))


def main() -> None:
    """A client that reads or saves whenever it is told to, until standard input ends."""
    address, token, file = sys.argv[1:]
    with connect(address, token=token) as client:
        model = client.model()

        def read() -> float:
            began = time.perf_counter()
            arrays = model.state_dict()
            taken = time.perf_counter() - began
            assert _bytes_of(arrays) == sum(entry.nbytes for entry in model.state_dict_keys().entries)
            return taken

        def save() -> float:
            began = time.perf_counter()
            model.save_state_dict(file)
            taken = time.perf_counter() - began
            os.unlink(file)
            return taken

        def size() -> int:
            return _bytes_of(model.state_dict())

        words = {"read": read, "save": save, "size": size, "forget_peak": forget_peak, "peak": peak_memory}
        answer({}, words)


def _bytes_of(arrays: Mapping[str, Any]) -> int:
    return sum(array.nbytes for array in arrays.values())


if __name__ == "__main__":
    main()
