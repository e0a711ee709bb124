"""What the servicers stand on, and what several of them need: a safe point, an operation."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from modscope.v1 import operation_pb2
from modscope_server.config import ServerConfig
from modscope_server.inspection.changes import Plan
from modscope_server.inspection.norm_stats import NormHolds
from modscope_server.runtime.breaks.sources import Sources
from modscope_server.runtime.breaks.table import BreakTable
from modscope_server.runtime.direct_use import DirectUse
from modscope_server.runtime.eager_steps import EagerSteps
from modscope_server.runtime.entries import Entry
from modscope_server.runtime.hooks import HookManager
from modscope_server.runtime.insight import Insight
from modscope_server.runtime.intervention import InterventionSpec, InterventionState
from modscope_server.runtime.interventions import Interventions
from modscope_server.runtime.leases import Leases
from modscope_server.runtime.ledger import Ledger
from modscope_server.runtime.metrics import Metrics
from modscope_server.runtime.operations import Operations
from modscope_server.runtime.registry import Registered, Registry
from modscope_server.runtime.run_control import RunControl
from modscope_server.runtime.safepoint import Answer, Kind, Place, SafePoint
from modscope_server.runtime.snapshots import Snapshots
from modscope_server.runtime.staging import Budget, StagedRead
from modscope_server.services import event_bytes
from modscope_server.services.call import Call
from modscope_server.services.changing import operation, options_of

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

__all__ = ["BATCH", "Serving", "batches"]

T = TypeVar("T")

BATCH = 1024
"""Most records in one message of a listing."""


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
        self.leases = Leases()
        self.eager_steps = EagerSteps(registry.models.values(), safepoint)
        self.insight = hooks.insight = Insight(self.eager_steps, DirectUse(safepoint))
        self.interventions = Interventions(self.leases, safepoint, self.insight)
        hooks.pack = event_bytes.pack
        hooks.boundary_events.follow(safepoint, registry.optimizers)
        hooks.step_ends.follow(safepoint)
        self.metrics = Metrics(hooks.boundary_events.metrics.reported)
        sources = Sources(registry, self.metrics, hooks, lambda: safepoint.serving)
        self.control = RunControl(safepoint, BreakTable(sources), self.leases)
        self.budget = Budget(config.limits.staging_bytes)
        self.ledger = Ledger(config.limits.operations, config.limits.undo_bytes)
        self.operations = Operations(safepoint, self.ledger)
        self.snapshots = Snapshots(config.limits.snapshot_bytes)

    def run(
        self,
        call: Call,
        fn: Callable[[], T],
        kind: Kind = "read",
        admits: Callable[[Place | None], bool] | None = None,
    ) -> Answer[T]:
        """Run `fn` at a safe point, for as long as the caller waits."""
        return self.safepoint.run(
            fn, kind=kind, caller=call.caller, timeout=call.timeout, cancelled=call, admits=admits
        )

    @contextmanager
    def staged(
        self,
        call: Call,
        collect: Callable[[], Sequence[tuple[str, Tensor]]],
        kind: Kind = "read",
        ahead: bool = True,
    ) -> Iterator[StagedRead]:
        """Tensors that are copied at a safe point, to be sent while and after that; freed at the end."""
        staged = StagedRead(self.safepoint, collect, self.budget)
        staged.start(kind=kind, caller=call.caller, timeout=call.timeout, cancelled=call, ahead=ahead)
        try:
            yield staged
        finally:
            staged.close()

    def change(
        self,
        call: Call,
        registered: Registered,
        kind: str,
        plan: Plan,
        options: operation_pb2.ChangeOptions | None = None,
        admits: Callable[[Place | None], bool] | None = None,
    ) -> operation_pb2.Operation:
        """Carry a change out at a write point, whole or not at all, and give its entry in the ledger."""
        asked = replace(options_of(call, options), admits=admits)
        entry = self.operations.carry_out(kind, registered, [plan], asked)
        return operation(entry, self.ledger)

    def intervene(
        self, call: Call, registered: Registered, spec: InterventionSpec, lease: float | None
    ) -> Answer[InterventionState]:
        """Make an intervention at a write point, and enter it into the ledger."""

        def act() -> InterventionState:
            made = self.interventions.add(registered, spec, call.who, lease)
            entry = Entry("intervene", made.model, call.who, made.step, paths=made.paths)
            entry.lost = f"it is ended by `modscope unhook {made.id}`"
            entry.complete((), {}, {})
            self.ledger.add(entry)
            return made

        made = self.run(call, act, "write")
        notes = self.insight.notes(registered.root, made.value.paths, "intervention")
        return replace(made, notes=(*made.notes, *notes))


def batches(items: Iterable[T]) -> Iterator[list[T]]:
    """The items in lists of at most BATCH; one empty list where there are none."""
    iterator = iter(items)
    batch = list(itertools.islice(iterator, BATCH))
    yield batch
    while batch := list(itertools.islice(iterator, BATCH)):
        yield batch
