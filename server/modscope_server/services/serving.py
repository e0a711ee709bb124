"""What the servicers stand on, and what several of them need: a safe point, an operation."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from google.protobuf import timestamp_pb2

from modscope.v1 import operation_pb2
from modscope_server.config import ServerConfig
from modscope_server.inspection.norm_stats import NormHolds
from modscope_server.runtime.hooks import HookManager
from modscope_server.runtime.registry import Registry
from modscope_server.runtime.safepoint import Answer, Kind, SafePoint
from modscope_server.runtime.staging import Budget, StagedRead
from modscope_server.services.call import Call

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

__all__ = ["BATCH", "Serving", "batches"]

T = TypeVar("T")

BATCH = 1024
"""Most records in one message of a listing."""

_log = logging.getLogger("modscope_server")


class Serving:
    """The runtime of one server, as its servicers share it."""

    def __init__(
        self,
        config: ServerConfig,
        registry: Registry,
        safepoint: SafePoint,
        hooks: HookManager,
        scaled: Callable[[], Iterable[Optimizer]],
        extras: Mapping[str, Any] | None = None,
    ) -> None:
        self.config = config
        self.registry = registry
        self.safepoint = safepoint
        self.hooks = hooks
        self.scaled = scaled
        """The optimizers that a GradScaler steps."""
        self.extras = dict(extras or {})
        """Other parts of the loop that attach was given, by name."""
        self.norm_holds = NormHolds(safepoint)
        """Layers whose running statistics are frozen."""
        self.budget = Budget(config.limits.staging_bytes)
        self._numbers = itertools.count(1)

    def run(self, call: Call, fn: Callable[[], T], kind: Kind = "read") -> Answer[T]:
        """Run `fn` at a safe point, for as long as the caller waits."""
        return self.safepoint.run(fn, kind=kind, caller=call.caller, timeout=call.timeout, cancelled=call)

    @contextmanager
    def staged(
        self, call: Call, collect: Callable[[], Sequence[tuple[str, Tensor]]], kind: Kind = "read"
    ) -> Iterator[StagedRead]:
        """Tensors that are copied at a safe point, to be sent while and after that; freed at the end."""
        staged = StagedRead(self.safepoint, collect, self.budget)
        staged.start(kind=kind, caller=call.caller, timeout=call.timeout, cancelled=call)
        try:
            yield staged
        finally:
            staged.close()

    def operation(
        self,
        call: Call,
        *,
        kind: str,
        model: str,
        paths: Sequence[str],
        answer: Answer[Any],
        notes: Sequence[str] = (),
        dry_run: bool = False,
    ) -> operation_pb2.Operation:
        """The record of a mutating call that took effect, or would have; logged in one line."""
        now = time.time()
        operation = operation_pb2.Operation(
            id=f"op-{next(self._numbers)}",
            kind=kind,
            model=model,
            paths=paths,
            step=answer.step,
            who=call.who,
            time=timestamp_pb2.Timestamp(seconds=int(now), nanos=int(now % 1 * 1e9)),
            outcome="dry_run" if dry_run else "applied",
            notes=(*answer.notes, *notes),
        )
        _log.info(
            "%s: %s of %s (%d tensors) at step %d by %s, %s",
            operation.id, kind, model, len(paths), answer.step, operation.who, operation.outcome,
        )  # fmt: skip
        return operation


def batches(items: Iterable[T]) -> Iterator[list[T]]:
    """The items in lists of at most BATCH; one empty list where there are none."""
    iterator = iter(items)
    batch = list(itertools.islice(iterator, BATCH))
    yield batch
    while batch := list(itertools.islice(iterator, BATCH)):
        yield batch
