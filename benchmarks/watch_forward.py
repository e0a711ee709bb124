"""One forward of which everything is kept, beside torchlens.

Ours sends each module's whole output to a subscriber in another process, and is measured until the last one
is there. torchlens (`trace`, which was log_forward_pass) keeps the output of each operation, modules' among
them, and the graph, in the process of the model. So the two do not do the same: there is no bar. torchlens
wraps torch's functions, so it has a process of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.util import find_spec

import torch

from benchmarks.measure import QUICK, Effort, Row, absent, compared, in_turns
from benchmarks.processes import Child, answer, workplace
from benchmarks.watch_models import gpt2
from benchmarks.watching import attached, one_thread
from modscope_server import Limits

__all__ = ["main", "run"]

_OPTIONS = {"payload": "tensor"}


def run(quick: bool) -> list[Row]:
    """Seconds of a forward beside torchlens, and beside a plain one."""
    effort = QUICK if quick else Effort(10, 20, 40.0)
    size = "quick" if quick else "full"
    with one_thread(), workplace(), Child("benchmarks.reader") as reader:
        sides: dict[str, Callable[[], float]] = {
            "ours": _ours(reader, quick),
            "alone": _Forward(quick).plain,
        }
        if find_spec("torchlens") is None:
            turns = in_turns(sides, effort)
        else:
            with Child("benchmarks.watch_forward", size) as torchlens:
                turns = in_turns({**sides, "torchlens": lambda: torchlens.ask("trace")}, effort)
    name = "a forward of GPT-2, every output kept whole"
    beside = f"{name}, beside torchlens.trace"
    if "torchlens" not in turns:
        return [absent(beside, "torchlens is not installed"), compared(name, turns, "ours", "alone", None)]
    return [
        compared(beside, turns, "ours", "torchlens", None),
        compared("the same, beside a plain forward", turns, "ours", "alone", None),
        compared("torchlens.trace, beside a plain forward", turns, "torchlens", "alone", None),
    ]


class _Forward:
    """A forward without gradients."""

    def __init__(self, quick: bool) -> None:
        self.loop = gpt2(quick=quick)
        self.tokens = torch.randint(0, 2048, (1, 16) if quick else (8, 128))

    @torch.no_grad()
    def plain(self) -> float:
        """Seconds, on its own."""
        began = time.perf_counter()
        self.loop.model(input_ids=self.tokens)
        return time.perf_counter() - began

    @torch.no_grad()
    def trace(self) -> float:
        """Seconds, traced by torchlens."""
        import torchlens

        began = time.perf_counter()
        traced = torchlens.trace(self.loop.model, None, {"input_ids": self.tokens})
        taken = time.perf_counter() - began
        assert len(traced.layer_list) > 86 // 6
        return taken


def _ours(reader: Child, quick: bool) -> Callable[[], float]:
    forward = _Forward(quick)

    def measured(count: int | None) -> tuple[float, int]:
        """Seconds until so many events have come, and how many were published."""
        with attached(forward.loop, Limits(queue_bytes=1 << 30)):
            reader.ask("watch", _OPTIONS, count)
            began = time.perf_counter()
            forward.plain()
            ended = reader.ask("wait") if count else began
            told = reader.ask("stop")
            assert not told["dropped"], told
            return ended - began, told["published"]

    count = measured(None)[1]
    return lambda: measured(count)[0]


def main() -> None:
    """Traces a forward when it is told to, until standard input ends."""
    import sys

    with one_thread():
        answer({}, {"trace": _Forward(sys.argv[1] == "quick").trace})


if __name__ == "__main__":
    main()
