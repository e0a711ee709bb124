"""How operations, optimizers' groups and snapshots are shown: their columns and names."""

from __future__ import annotations

import time
from collections.abc import Sequence

from modscope_client.cli.render import View
from modscope_client.cli.table import Column
from modscope_client.cli.text import byte_count, number, one_line
from modscope_client.types import Operation, OptimizerGroup, Snapshot

__all__ = ["GROUPS", "OPERATIONS", "SNAPSHOTS", "local_time", "paths_text"]

_DIM, _ALARM = "dim", "bold red"


def local_time(seconds: float) -> str:
    """Unix seconds as a date and time of this host."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def paths_text(paths: Sequence[str]) -> str:
    """The first path, and how many more there are."""
    if not paths:
        return ""
    more = f" and {len(paths) - 1:,} more" if len(paths) > 1 else ""
    return f"{one_line(paths[0])}{more}"


def _state(operation: Operation) -> str:
    """Whether it was undone, or cannot be."""
    return "yes" if operation.undone else "cannot" if operation.not_undoable else ""


OPERATIONS: View[Operation] = View(
    columns=(
        Column("ID", lambda o: one_line(o.id), style="bold"),
        Column("TIME", lambda o: local_time(o.time), style=_DIM, secondary=2),
        Column("STEP", lambda o: f"{o.step:,}", right=True),
        Column("KIND", lambda o: one_line(o.kind), style="cyan"),
        Column("PATHS", lambda o: paths_text(o.paths), flexible=True),
        Column("WHO", lambda o: one_line(o.who), style=_DIM, flexible=True, secondary=3),
        Column("OUTCOME", lambda o: o.outcome, style=lambda o: _ALARM if o.outcome == "failed" else ""),
        Column("UNDONE", _state),
    ),
    name=lambda o: o.id,
)

GROUPS: View[OptimizerGroup] = View(
    columns=(
        Column("GROUP", lambda g: str(g.index), right=True, style="bold"),
        Column("OPTIMIZER", lambda g: one_line(g.optimizer), style="cyan"),
        Column("LR", lambda g: number(g.lr, 6), right=True),
        Column("WEIGHT DECAY", lambda g: number(g.weight_decay, 6), right=True),
        Column("TENSORS", lambda g: f"{len(g.parameters):,}", right=True),
        Column("PARAMETERS", lambda g: paths_text(g.parameters), flexible=True),
        Column("STATE", lambda g: ", ".join(map(one_line, g.state_keys)), style=_DIM, secondary=3),
        Column("SCHEDULER", lambda g: one_line(g.scheduler), style=_DIM, optional=True, secondary=2),
        Column(
            "BASE LR",
            lambda g: "" if g.base_lr is None else number(g.base_lr, 6),
            right=True,
            style=_DIM,
            optional=True,
            secondary=2,
        ),
    ),
    name=lambda g: str(g.index),
)

SNAPSHOTS: View[Snapshot] = View(
    columns=(
        Column("NAME", lambda s: one_line(s.name), style="bold", flexible=True),
        Column("STEP", lambda s: f"{s.step:,}", right=True),
        Column("TIME", lambda s: local_time(s.time), style=_DIM, secondary=2),
        Column("SIZE", lambda s: byte_count(s.bytes), right=True),
        Column("WHERE", lambda s: one_line(s.directory) or "memory", flexible=True),
        Column("PARTS", lambda s: ", ".join(map(one_line, s.parts)), style=_DIM, flexible=True, secondary=3),
    ),
    name=lambda s: s.name,
)
