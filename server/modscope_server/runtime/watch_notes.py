"""What a watcher should know from the beginning about the modules that were chosen."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from modscope_server.inspection.records import Located
from modscope_server.runtime.direct_use import used_by_its_owner

__all__ = ["watch_notes"]

_MOST_TOLD = 5


def watch_notes(root: nn.Module, chosen: Iterable[Located]) -> tuple[str, ...]:
    """One sentence for each thing that limits, or changes, what is seen."""
    chosen = list(chosen)
    scripted = [one.path for one in chosen if isinstance(one.module, torch.jit.ScriptModule)]
    direct = [one.path for one in chosen if used_by_its_owner(root, one.raw_path)]
    fused = _fused(root, chosen)
    notes = []
    if scripted:
        notes.append(f"ScriptModules take no hooks, so nothing will come from: {_told(scripted)}")
    if direct:
        notes.append(f"nn.MultiheadAttention uses these without calling them: {_told(direct)}")
    if fused:
        notes.append(
            f"hooks switch the fused path of nn.TransformerEncoderLayer off, in evaluation, so other kernels "
            f"run while this watch does: {_told(fused)}"
        )
    return tuple(notes)


def _fused(root: nn.Module, chosen: Iterable[Located]) -> list[str]:
    """The encoder layers at, or inside of, which hooks come."""
    found: dict[str, None] = {}
    for one in chosen:
        names = one.raw_path.split(".") if one.raw_path else []
        for depth in range(len(names) + 1):
            above = ".".join(names[:depth])
            if _is_layer(root, above):
                found[above] = None
    return list(found)


def _is_layer(root: nn.Module, raw_path: str) -> bool:
    try:
        return isinstance(root.get_submodule(raw_path), nn.TransformerEncoderLayer)
    except AttributeError:
        return False


def _told(paths: list[str]) -> str:
    shown = ", ".join(map(repr, paths[:_MOST_TOLD]))
    more = len(paths) - _MOST_TOLD
    return f"{shown} and {more} more" if more > 0 else shown
