"""Records of changes: operations, optimizers' groups, snapshots. They are reached through `types`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modscope_client.run_types import Lease

__all__ = [
    "Intervention",
    "LoadResult",
    "Operation",
    "OperationList",
    "OptimizerGroup",
    "OptimizerList",
    "Snapshot",
]


@dataclass(frozen=True, slots=True)
class Operation:
    """What one mutating call did."""

    id: str
    """Identifies it on its server."""
    kind: str
    """Which verb: "write", "freeze", "unfreeze", "reinitialize", "load_state_dict", "set_optimizer",
    "add_to_optimizer", "restore_snapshot", "transaction", "undo"."""
    model: str
    """Name of the model."""
    paths: tuple[str, ...]
    """Paths of the tensors that it touched, or would touch in a dry run."""
    step: int
    """step_count at which it took effect."""
    who: str
    """Role of the token that asked for it, and from where."""
    time: float
    """When it took effect, in Unix seconds."""
    outcome: str
    """"applied", "dry_run", or "failed": then the model is as it was before."""
    before: Mapping[str, str] | None = field(default=None, hash=False)
    """Digest of each touched tensor before; None where none is known."""
    after: Mapping[str, str] | None = field(default=None, hash=False)
    """Digest of each touched tensor after; None where none is known."""
    undone: bool = False
    """Whether it has been undone."""
    notes: tuple[str, ...] = ()
    """What the caller should know, such as a parameter that no optimizer holds."""
    request_id: str = ""
    """What the caller gave as request_id."""
    undoes: str = ""
    """For an "undo": id of the operation that it undid."""
    not_undoable: str = ""
    """Why it cannot be undone any more, as far as that is known without trying; "" where it can."""


@dataclass(frozen=True, slots=True)
class OperationList:
    """The ledger of a model."""

    operations: tuple[Operation, ...]
    """The operations, newest last."""
    forgotten: int
    """Operations that the ledger has let go since the server began, older than all of these."""


@dataclass(frozen=True, slots=True)
class LoadResult:
    """What a load of a state_dict did; key lists as torch.nn.Module.load_state_dict gives them."""

    operation: Operation
    """The operation."""
    missing_keys: list[str] = field(hash=False)
    """Keys of the model that were not sent."""
    unexpected_keys: list[str] = field(hash=False)
    """Keys that were sent and the model does not have."""


@dataclass(frozen=True, slots=True)
class OptimizerGroup:
    """A parameter group of an optimizer."""

    optimizer: str
    """Class of the optimizer, such as "AdamW"."""
    index: int
    """Index of the group, counted over all optimizers."""
    lr: float | None
    """Learning rate; None where the optimizer has none."""
    weight_decay: float | None
    """Weight decay; None where the optimizer has none."""
    parameters: tuple[str, ...]
    """Paths of the model's parameters that it holds, in its order."""
    options: Mapping[str, Any] = field(hash=False)
    """All other hyper-parameters by name."""
    state_keys: tuple[str, ...] = ()
    """Keys of the state that it keeps of a parameter, such as "exp_avg"; empty before its first step."""
    strangers: tuple[str, ...] = ()
    """Parameters that it holds and that no registered model has, each as dtype and shape."""
    base_lr: float | None = None
    """Learning rate from which a scheduler given as an extra computes; None where none is known."""
    scheduler: str = ""
    """Class of that scheduler; "" where none is known."""


@dataclass(frozen=True, slots=True)
class OptimizerList:
    """The optimizers of a model."""

    groups: tuple[OptimizerGroup, ...]
    """Their parameter groups, in the order of their index."""
    unheld: tuple[str, ...]
    """Paths of the model's parameters that no optimizer holds."""
    step: int
    """step_count at which the list holds."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A whole run at one step."""

    name: str
    """Its name."""
    model: str
    """Name of the model."""
    step: int
    """step_count at which it was taken."""
    time: float
    """When it was taken, in Unix seconds."""
    bytes: int
    """Bytes of its tensors."""
    directory: str
    """Directory on the server's host that holds it; "" where it is in memory."""
    parts: tuple[str, ...]
    """What it holds: "model", "optimizer", "random", "scheduler", ..."""
    who: str
    """Role of the token that asked for it, and from where."""
    notes: tuple[str, ...] = ()
    """What it could not take along, and why."""


@dataclass(frozen=True, slots=True)
class Intervention:
    """Something that changes a value at each call of some modules."""

    id: str
    """Identifies it on its server."""
    model: str
    """Name of the model."""
    path: str
    """The module's path, or the glob that it was made with."""
    paths: tuple[str, ...]
    """Paths of the modules at which it stands."""
    hook: str
    """ "forward" where it changes what they give, "forward_pre" what they get."""
    action: str
    """What it does, such as "scale 2" or "clamp 0 1"."""
    index: str
    """Which part of the tensor; "" for all of it."""
    key: str | None
    """Which tensor of a structured value; None for the only one."""
    calls: int | None
    """How often it acts at each module; None for no limit."""
    start: int | None
    """First step at which it acts; None for any."""
    stop: int | None
    """First step at which it acts no more; None for none."""
    applied: int
    """How often it has changed a value, at all its modules."""
    last_step: int | None
    """step_count when it did so last; None where it has not."""
    state: str
    """ "waiting", "acting", "not acting" (it should, and does not) or "ended"."""
    note: str
    """Why it waits, does not act, or has ended."""
    lease: Lease | None
    """What it is held by; None where it persists."""
    persist: bool
    """Whether it stays until somebody ends it."""
    step: int
    """step_count when it was made."""
    who: str
    """Role of the token that made it, and from where."""
    time: float
    """When it was made, in Unix seconds."""
