"""Undoing an operation of the ledger: what it touched is put back as it was."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from modscope_server.errors import NotUndoable
from modscope_server.inspection.backup import writing_to
from modscope_server.inspection.changes import Change
from modscope_server.inspection.commands import named
from modscope_server.inspection.lookup import tensor_at
from modscope_server.inspection.memento import Memento
from modscope_server.inspection.optimizers import Groups
from modscope_server.runtime.entries import Entry
from modscope_server.runtime.ledger import Ledger
from modscope_server.runtime.registry import Registered

__all__ = ["plan_undo"]


def plan_undo(ledger: Ledger, entry: Entry, registered: Registered) -> Change:
    """Plan to put back, bit for bit, what an operation changed. Raises NotUndoable with the reason."""
    reason, hint = ledger.not_undoable(entry)
    memento = entry.memento
    if not reason and memento is not None:
        reason = _obstacle(memento, registered)
        hint = "the training script has replaced it since: write the values that you want"
    if reason or memento is None:
        why = reason or entry.lost
        raise NotUndoable(f"{entry.id} ({entry.kind}) cannot be undone: {why}", hint=hint, field="id")
    now = memento.again()
    for tensor in memento.to_be_frozen:
        now.keep_gradient(tensor)

    def apply() -> tuple[str, ...]:
        frozen = memento.to_be_frozen
        memento.restore()
        groups = registered.groups()
        for tensor in frozen:
            _clear_gradient(tensor, groups)
        return ()

    return Change(entry.paths, now, apply, lambda before: _moved(entry, before), memento.values)


def _obstacle(memento: Memento, registered: Registered) -> str:
    for path, tensor in memento.tensors:
        found = tensor_at(registered.root, path)
        if found is None or found.tensor is not tensor:
            return f"{path} is not the same tensor any more"
    return memento.obstacle()


def _clear_gradient(tensor: torch.Tensor, groups: Groups) -> None:
    """Let no gradient from before move a tensor that is frozen again, as a freeze does."""
    if tensor.grad is None:
        return
    if groups.holds(tensor):
        tensor.grad = None
    else:
        with writing_to(tensor.grad):
            tensor.grad.zero_()


def _moved(entry: Entry, before: Mapping[str, str]) -> tuple[str, ...]:
    moved = [path for path, digest in before.items() if entry.after.get(path, digest) != digest]
    if not moved:
        return ()
    return (f"moved since {entry.id}, by training or by hand, and put back with it: {named(moved)}",)
