"""Whole activations of a model that costs nothing, beside a raw grpcio byte stream of the same bytes.

Ours is from the first module's call to the last array at the subscriber: a copy of each 4 MiB output, its
bytes on their way, and an array of its own for each. The peer sends bytes that were made beforehand and is
read into one buffer that was there before. Both servers and both readers are processes of their own.
"""

from __future__ import annotations

import statistics

from benchmarks.measure import QUICK, Bar, Effort, Row, measure, ratio
from benchmarks.processes import Child, workplace
from benchmarks.sources import TENSORS

__all__ = ["run"]

_MODULES = 8
_TENSOR = 4 << 20


def run(quick: bool) -> list[Row]:
    """Throughput of the stream."""
    passes, effort = (1, QUICK) if quick else (16, Effort(20, 200, 150.0))
    count = passes * _MODULES
    size = count * _TENSOR
    with (
        workplace() as place,
        Child("benchmarks.sources", str(_MODULES), str(_TENSOR)) as source,
        Child("benchmarks.reader") as reader,
        Child("benchmarks.peers", "serve", str(place / "raw.sock"), str(size)) as raw,
        Child("benchmarks.peers", "read", raw.hello["address"], str(size)) as peer,
    ):

        def ours() -> float:
            reader.ask("watch", TENSORS, count, source.hello["address"], source.hello["token"])
            began: float = source.ask("run", passes)
            ended: float = reader.ask("wait")
            assert reader.ask("stop") == {"published": count, "dropped": 0, "delivered": count}
            return ended - began

        pairs = measure(ours, lambda: peer.ask("read"), effort)
    one, other = (size / statistics.median(side) / 1e9 for side in (pairs.ours, pairs.peers))
    return [
        ratio(
            f"whole activations, {count} of 4 MiB, throughput beside a raw byte stream",
            pairs,
            bar=Bar(0.7, at_least=True),
            detail=f"{one:.2f} beside {other:.2f} GB/s",
            invert=True,
        )
    ]
