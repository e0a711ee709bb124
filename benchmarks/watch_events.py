"""Events a second with statistics, to one subscriber, beside the same bytes encoded beforehand.

The model costs nothing: ours is hooks, reductions, queue, encoding and transport, and nothing is lost. The
peer is a server of the same kind that sends recorded messages of such a watch. The subscriber is the same.
"""

from __future__ import annotations

import statistics

from benchmarks.measure import QUICK, Bar, Effort, Row, measure, ratio
from benchmarks.processes import Child, workplace
from benchmarks.sources import STATISTICS

__all__ = ["run"]

_MODULES = 64
_TENSOR = 1024


def run(quick: bool) -> list[Row]:
    """Events that came in a second, from the first hook to the last event at the subscriber."""
    passes, effort = (2, QUICK) if quick else (600, Effort(20, 60, 100.0))
    count = passes * _MODULES
    with (
        workplace() as place,
        Child("benchmarks.sources", str(_MODULES), str(_TENSOR)) as source,
        Child("benchmarks.reader") as reader,
        Child("benchmarks.encoded", str(place / "encoded.sock")) as encoded,
    ):

        def counted(server: Child) -> float:
            reader.ask("watch", STATISTICS, count, server.hello["address"], server.hello["token"])
            began: float = server.ask("run", passes)
            ended: float = reader.ask("wait")
            assert reader.ask("stop") == {"published": count, "dropped": 0, "delivered": count}
            return ended - began

        encoded.ask("record", source.hello["address"], source.hello["token"], count)
        source.ask("run", passes)
        size = encoded.ask("recorded")
        pairs = measure(lambda: counted(source), lambda: counted(encoded), effort)
    one, other = (count / statistics.median(side) for side in (pairs.ours, pairs.peers))
    return [
        ratio(
            f"events a second, statistics, {count:,} events of {size / count:.0f} bytes, beside encoded ones",
            pairs,
            bar=Bar(0.5, at_least=True),
            detail=f"{one:,.0f} beside {other:,.0f} a second",
            invert=True,
        )
    ]
