"""How each kind of record is shown: its columns and its name."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from modscope_client.cli.render import View
from modscope_client.cli.table import Column
from modscope_client.cli.text import (
    age,
    byte_count,
    hook_path,
    human_count,
    number,
    one_line,
    path_text,
    shape_text,
)

if TYPE_CHECKING:
    from modscope_client.cli.tree import TreeRow
    from modscope_client.types import (
        BufferInfo,
        HookInfo,
        ModelInfo,
        ModuleInfo,
        ParameterInfo,
        ServerInfo,
        TensorSpec,
    )

__all__ = [
    "HOOKS",
    "KEYS",
    "MODELS",
    "MODULES",
    "SERVERS",
    "TREE",
    "buffers_view",
    "frozen_mark",
    "module_note",
    "parameters_view",
    "tensor_note",
]

_PATH, _TYPE, _DIM, _FROZEN, _ALARM = "bold", "cyan", "dim", "blue", "bold red"


def frozen_mark(module: ModuleInfo) -> str:
    """ "frozen" where no parameter of it is trainable, the share where some are not, else ""."""
    if module.trainable_parameters == module.parameters:
        return ""
    if not module.trainable_parameters:
        return "frozen"
    return f"{human_count(module.parameters - module.trainable_parameters)} frozen"


def module_note(module: ModuleInfo) -> str:
    """What sets a module apart: the same module elsewhere, wrappers around it."""
    notes = [f"also {one_line(path)}" for path in module.aliases]
    if module.wrappers:
        notes.append(f"in {' in '.join(reversed(module.wrappers))}")
    return ", ".join(notes)


def tensor_note(tensor: ParameterInfo) -> str:
    """What sets a tensor apart: other paths of it, why it cannot be read."""
    notes = [f"tied with {one_line(path)}" for path in tensor.tied_with]
    return ", ".join([*notes, tensor.unreadable] if tensor.unreadable else notes)


def _mode(training: bool) -> str:
    return "train" if training else "eval"


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _group(tensor: ParameterInfo) -> str:
    return "" if tensor.optimizer is None else str(tensor.optimizer)


MODELS: View[ModelInfo] = View(
    columns=(
        Column("NAME", lambda m: one_line(m.name), style=_PATH, flexible=True),
        Column("TYPE", lambda m: one_line(m.type), style=_TYPE),
        Column("STEP", lambda m: f"{m.step:,}", right=True),
        Column("MODULES", lambda m: f"{m.modules:,}", right=True),
        Column("PARAMS", lambda m: human_count(m.parameters), right=True),
        Column("TRAINABLE", lambda m: human_count(m.trainable_parameters), right=True, secondary=3),
        Column("OPTIMIZERS", lambda m: str(m.optimizers), right=True, style=_DIM, secondary=3),
        Column("MODE", lambda m: _mode(m.training), style=_DIM, secondary=3),
        Column("WRITABLE", lambda m: _yes(m.writable), style=_DIM, secondary=3),
    ),
    name=lambda m: m.name,
)

SERVERS: View[ServerInfo] = View(
    columns=(
        Column("PID", lambda s: str(s.pid), right=True),
        Column("MODELS", lambda s: ", ".join(map(one_line, s.models)), style=_PATH, flexible=True),
        Column("AGE", lambda s: age(time.time() - s.started), right=True),
        Column("WRITABLE", lambda s: _yes(s.writable), style=_DIM),
        Column("VERSION", lambda s: one_line(s.version), style=_DIM, secondary=3),
        Column("ADDRESS", lambda s: one_line(s.address), flexible=True),
    ),
    name=lambda s: s.address,
)

_MODULE_DETAILS: tuple[Column[ModuleInfo], ...] = (
    Column("TYPE", lambda m: one_line(m.type), style=_TYPE, flexible=True),
    Column("PARAMS", lambda m: human_count(m.parameters), right=True),
    Column("TRAINABLE", lambda m: human_count(m.trainable_parameters), right=True, secondary=3),
    Column("CHILDREN", lambda m: str(m.children), right=True, style=_DIM, secondary=3),
    Column("MODE", lambda m: _mode(m.training), style=_DIM, secondary=3),
    Column("FROZEN", frozen_mark, style=_FROZEN, optional=True),
    Column("NOTE", module_note, style=_DIM, secondary=3, optional=True),
)

MODULES: View[ModuleInfo] = View(
    columns=(Column("PATH", lambda m: path_text(m.path), style=_PATH, flexible=True), *_MODULE_DETAILS),
    name=lambda m: m.path,
)


def _tree_note(row: TreeRow) -> str:
    hidden = f"{row.module.children} below" if row.folded else ""
    return ", ".join(filter(None, (hidden, module_note(row.module))))


TREE: View[TreeRow] = View(
    columns=(
        Column(
            "MODULE",
            lambda r: one_line(r.module.name) or path_text(r.module.path),
            lead=lambda r: r.lead,
            style=lambda r: "bold" if r.module.children else "",
            flexible=True,
        ),
        Column("TYPE", lambda r: one_line(r.module.type), style=_TYPE, flexible=True),
        Column("PARAMS", lambda r: human_count(r.module.parameters), right=True),
        Column("FROZEN", lambda r: frozen_mark(r.module), style=_FROZEN, optional=True),
        Column("NOTE", _tree_note, style=_DIM, secondary=3, optional=True),
    ),
    name=lambda r: r.module.path,
    record=lambda r: r.module,
)

_TENSOR: tuple[Column[ParameterInfo], ...] = (
    Column("PATH", lambda t: path_text(t.path), style=_PATH, flexible=True),
    Column("SHAPE", lambda t: shape_text(t.shape), secondary=1),
    Column("DTYPE", lambda t: t.dtype, style=_TYPE, secondary=2),
    Column("NUMEL", lambda t: human_count(t.numel), right=True, secondary=2),
)

_PARAMETER: tuple[Column[ParameterInfo], ...] = (
    Column(
        "STATE",
        lambda t: "trainable" if t.requires_grad else "frozen",
        style=lambda t: "" if t.requires_grad else _FROZEN,
        secondary=2,
    ),
    Column("GRAD", lambda t: "yes" if t.has_grad else "", style=_DIM, secondary=3),
    Column("GROUP", _group, right=True, style=_DIM, secondary=3),
    Column("DEVICE", lambda t: t.device, style=_DIM, secondary=3),
    Column("NOTE", tensor_note, style=_DIM, secondary=3, optional=True),
)

_BUFFER: tuple[Column[BufferInfo], ...] = (
    Column("SAVED", lambda t: _yes(t.persistent), style=_DIM),
    Column("DEVICE", lambda t: t.device, style=_DIM, secondary=3),
    Column("NOTE", tensor_note, style=_DIM, secondary=3, optional=True),
)


def _stat_column(header: str, field: str) -> Column[ParameterInfo]:
    return Column(
        header, lambda t: number(getattr(t.stats, field)) if t.stats else "", right=True, secondary=1
    )


def _bad_column(header: str, field: str) -> Column[ParameterInfo]:
    def text(tensor: ParameterInfo) -> str:
        count: int = getattr(tensor.stats, field) if tensor.stats else 0
        return human_count(count) if count else ""

    return Column(header, text, right=True, style=_ALARM, optional=True)


def _zeros(tensor: ParameterInfo) -> str:
    return human_count(tensor.stats.zeros) if tensor.stats else ""


_STATS: tuple[Column[ParameterInfo], ...] = (
    *(_stat_column(field.upper(), field) for field in ("mean", "std", "min", "max", "norm")),
    Column("ZEROS", _zeros, right=True, style=_DIM, secondary=2),
    _bad_column("NAN", "nan"),
    _bad_column("INF", "inf"),
)


def parameters_view(stats: bool) -> View[ParameterInfo]:
    """Parameters in columns, with their statistics or without."""
    more = _STATS if stats else ()
    return View(columns=(*_TENSOR, *more, *_PARAMETER), name=lambda t: t.path)


def buffers_view(stats: bool) -> View[BufferInfo]:
    """Buffers in columns, with their statistics or without."""
    more = _STATS if stats else ()
    return View(columns=(*_TENSOR, *more, *_BUFFER), name=lambda t: t.path)


def _hook_style(hook: HookInfo) -> str:
    return {"blind": _ALARM, "fired": "green"}.get(hook.state, _DIM)


HOOKS: View[HookInfo] = View(
    columns=(
        Column("PATH", lambda h: hook_path(h.path, h.kind), style=_PATH, flexible=True),
        Column("HOOK", lambda h: h.kind, style=_TYPE),
        Column("OWNER", lambda h: h.owner, secondary=2),
        Column("STATE", lambda h: h.state, style=_hook_style),
        Column("FIRED", lambda h: f"{h.fired:,}", right=True),
        Column(
            "LAST STEP", lambda h: "" if h.last_step is None else f"{h.last_step:,}", right=True, secondary=2
        ),
        Column("ID", lambda h: h.intervention_id or ", ".join(h.watch_ids), style=_DIM, secondary=1),
        Column("REASON", lambda h: one_line(h.reason), flexible=True, optional=True),
        Column("REMEDY", lambda h: one_line(h.remedy), style=_DIM, optional=True, secondary=3),
    ),
    name=lambda h: h.path,
)

KEYS: View[TensorSpec] = View(
    columns=(
        Column("KEY", lambda k: one_line(k.key), style=_PATH, flexible=True),
        Column("SHAPE", lambda k: shape_text(k.shape)),
        Column("DTYPE", lambda k: k.dtype, style=_TYPE),
        Column("SIZE", lambda k: byte_count(k.nbytes), right=True),
    ),
    name=lambda k: k.key,
)
