"""Whether a snapshot fits the run that there is now; what differs is told all at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import nn
from torch.optim import Optimizer

from modscope_server.inspection.commands import named
from modscope_server.inspection.edits import overlaps_itself
from modscope_server.inspection.param_groups import held_by
from modscope_server.inspection.snapshot import Image, Run, model_tensors, place_of
from modscope_server.inspection.tensors import dtype_name, shape_of, unreadable_reason
from modscope_server.inspection.value_codec import Json
from modscope_server.inspection.walk import walk

__all__ = ["differences"]


def differences(image: Image, run: Run) -> list[str]:
    """What keeps the snapshot from being put back; nothing where it fits."""
    kept = image.run
    found = list(_sets("models", kept["models"], run.models))
    for name, root in run.models.items():
        if name in kept["models"]:
            found += [f"{name}: {text}" for text in _model(kept["models"][name], root, image)]
    found += _optimizers(kept["optimizers"], run, image)
    extras = run.other_extras
    absent = [name for name in kept["extras"] if name not in extras]
    if absent:
        found.append(f"attach was given no {named(absent)} among its extras")
    for name, extra in kept["extras"].items():
        if name in extras and type(extras[name]).__name__ != extra["type"]:
            found.append(f"{name} was a {extra['type']} and is a {type(extras[name]).__name__}")
    return found


def _model(kept: Json, root: nn.Module, image: Image) -> Iterator[str]:
    here = {visit.path for visit in walk(root).visits if visit.first and not visit.hidden}
    yield from _sets("modules", kept["training"], here)
    live = model_tensors(root)
    yield from _sets("tensors", kept["tensors"], live)
    rows: dict[int, tuple[str, int]] = {}
    for path, tensor in live.items():
        if path in kept["tensors"]:
            yield from _tensor(path, kept["tensors"][path], tensor, image)
            row = kept["tensors"][path]["value"]
            other, first = rows.setdefault(id(tensor), (path, row))
            if first != row:
                yield f"{path} and {other} are one tensor now, and were two"


def _optimizers(kept: Json, run: Run, image: Image) -> Iterator[str]:
    here = run.all_optimizers
    if len(kept) != len(here):
        names = [type(optimizer).__name__ for optimizer in here]
        yield (
            f"it has {len(kept)} optimizers ({named(one['type'] for one in kept)}), and {len(here)} are "
            f"known now ({named(names)}): one that attach was not given is known once it has stepped"
        )
        return
    places = place_of(run.models)
    for at, (one, optimizer) in enumerate(zip(kept, here, strict=True)):
        name = f"optimizer {at}"
        if one["type"] != type(optimizer).__name__:
            yield f"{name} was {one['type']} and is {type(optimizer).__name__}"
            continue
        yield from (f"{name} ({one['type']}): {text}" for text in _groups(one, optimizer, places, image))


def _groups(
    kept: Json, optimizer: Optimizer, places: dict[int, tuple[str, str]], image: Image
) -> Iterator[str]:
    if len(kept["groups"]) != len(optimizer.param_groups):
        yield f"it had {len(kept['groups'])} parameter groups and has {len(optimizer.param_groups)}"
        return
    live = held_by(optimizer)
    for number, (then, now) in enumerate(zip(kept["groups"], optimizer.param_groups, strict=True)):
        before = [_name(kept["held"][index], index) for index in then["params"]]
        at = {id(param): index for index, param in enumerate(live)}
        after = [_live_name(param, places, at[id(param)]) for param in now["params"]]
        if before == after:
            continue
        if sorted(before) == sorted(after):
            yield f"group {number} holds its parameters in another order"
        yield from (f"group {number}: {text}" for text in _sets("parameters", before, after))
    for index, (then, param) in enumerate(zip(kept["held"], live, strict=False)):
        if "tensor" in then and id(param) not in places:
            yield from _tensor(f"parameter {index}, which is no model's", then["tensor"], param, image)


def _tensor(name: str, kept: Json, tensor: torch.Tensor, image: Image) -> Iterator[str]:
    reason = unreadable_reason(tensor)
    if reason:
        yield f"{name} is {reason}"
        return
    before = f"{kept['dtype']} {kept['shape']}"
    after = f"{dtype_name(tensor)} {list(shape_of(tensor))}"
    if before != after:
        yield f"{name} was {before} and is {after}"
    elif overlaps_itself(tensor) and not torch.equal(tensor.cpu(), image.table.view(kept["value"])):
        yield f"{name} has elements that share memory, and cannot be written"


def _name(held: Json, index: int) -> str:
    return f"{held['model']}:{held['path']}" if "path" in held else f"parameter {index}, which is no model's"


def _live_name(param: torch.Tensor, places: dict[int, tuple[str, str]], index: int) -> str:
    home = places.get(id(param))
    return ":".join(home) if home else f"parameter {index}, which is no model's"


def _sets(what: str, then: Iterable[str], now: Iterable[str]) -> Iterator[str]:
    before, after = list(then), list(now)
    old, present = set(before), set(after)
    gone = [repr(name) for name in before if name not in present]
    new = [repr(name) for name in after if name not in old]
    if gone:
        yield f"{what} that are not here now: {named(gone)}"
    if new:
        yield f"{what} that it does not have: {named(new)}"
