"""Putting a snapshot back: planned and checked whole, then carried out in place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import LBFGS, Optimizer

from modscope_server.errors import SnapshotMismatch
from modscope_server.inspection.backup import write_elements
from modscope_server.inspection.changes import Change
from modscope_server.inspection.extras import stateful
from modscope_server.inspection.norm_stats import NormHolds
from modscope_server.inspection.optimizer_memory import set_moved
from modscope_server.inspection.param_groups import held_by, options_of
from modscope_server.inspection.placing import (
    fits,
    present_device,
    put_in_place,
    set_requires_grad,
    storages,
)
from modscope_server.inspection.randomness import restore_random_state
from modscope_server.inspection.snapshot import Image, Run, model_tensors
from modscope_server.inspection.snapshot_match import differences
from modscope_server.inspection.snapshot_memento import memento_of
from modscope_server.inspection.tensor_table import Thaw
from modscope_server.inspection.tensors import has_grad
from modscope_server.inspection.value_codec import Json, decode
from modscope_server.inspection.walk import walk

__all__ = ["plan_restore"]

_DAMAGED = (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError)


def plan_restore(image: Image, run: Run, model: str) -> Change:
    """What puts the whole run back; `model` is the one whose paths are told without its name.

    Everything is put in place: parameters, buffers and parameter groups stay the same objects, and so do
    the tensors of optimizer state that still fit. Raises SnapshotMismatch, naming all that differs.
    """
    try:
        found = differences(image, run)
    except _DAMAGED as error:
        raise _damaged(error) from error
    if found:
        raise SnapshotMismatch(
            f"the run is built differently now: {'; '.join(found)}",
            hint="restore it into the same model, optimizers and extras",
            differences="; ".join(found),
        )
    restore = _Restore(image, run)
    try:
        steps = list(restore.steps())
    except _DAMAGED as error:
        raise _damaged(error) from error
    memento = memento_of(run, model, image.run["extras"])

    def apply() -> tuple[str, ...]:
        for step in steps:
            step()
        return tuple(restore.notes)

    return Change(_paths(run, model), memento, apply)


def _paths(run: Run, model: str) -> tuple[str, ...]:
    others = [name for name in run.models if name != model]
    own = model_tensors(run.models[model])
    return (*own, *(f"{name}:{path}" for name in others for path in model_tensors(run.models[name])))


def _damaged(error: Exception) -> SnapshotMismatch:
    return SnapshotMismatch(
        f"the snapshot is damaged: {type(error).__name__}: {error}", hint="restore another one"
    )


class _Restore:
    """Makes the steps of one restoration: all that can fail is done before the first is carried out."""

    def __init__(self, image: Image, run: Run) -> None:
        self.notes: list[str] = []
        self._image = image
        self._kept = image.run
        self._run = run
        self._live = {name: model_tensors(root) for name, root in run.models.items()}
        self._thaw = Thaw(image.table)

    def steps(self) -> Iterator[Callable[[], object]]:
        """In the order in which they are to be done: what the loop's own code puts back comes first."""
        yield from self._extras()
        for name, root in self._run.models.items():
            yield from self._model(self._kept["models"][name], root, self._live[name])
        for kept, optimizer in zip(self._kept["optimizers"], self._run.all_optimizers, strict=True):
            yield from self._optimizer(kept, optimizer)
        states = decode(self._kept["random"], self._thaw, device=lambda device: "cpu")
        yield lambda: self.notes.extend(restore_random_state(states))
        yield lambda: self._run.set_step_count(self._image.step)

    def _extras(self) -> Iterator[Callable[[], object]]:
        for name, extra in self._run.other_extras.items():
            ways = stateful(extra)
            kept = self._kept["extras"].get(name)
            if kept is None or ways is None:
                self.notes.append(f"{name} is no part of the snapshot: it stays as it is")
                continue
            state = decode(kept["state"], self._thaw, ways.take(), present_device)
            yield partial(ways.put, state)

    def _model(
        self, kept: Json, root: nn.Module, live: dict[str, torch.Tensor]
    ) -> Iterator[Callable[[], object]]:
        done: set[int] = set()
        for path, tensor in live.items():
            if id(tensor) not in done:
                done.add(id(tensor))
                yield from self._tensor(kept["tensors"][path], tensor)
        holds, held = self._run.holds, set(kept["held"])
        for visit in walk(root).visits:
            if not visit.first:
                continue
            flag = kept["wrappers"].get(visit.raw_path) if visit.hidden else kept["training"][visit.path]
            if visit.path in held or visit.module in holds:
                yield _norm(holds, visit.module, root, held=visit.path in held)
            if flag is not None:
                yield _training(visit.module, bool(flag))

    def _tensor(self, kept: Json, tensor: torch.Tensor) -> Iterator[Callable[[], object]]:
        row = kept["value"]
        value = self._image.table.view(row)
        self._thaw.known(row, tensor.detach())
        # One whose elements share memory was found to have them already.
        yield lambda: write_elements(tensor, value)
        if tensor.is_leaf:
            yield lambda: set_requires_grad(tensor, bool(kept["requires_grad"]))
        yield from self._grad(kept["grad"], tensor)

    def _grad(self, node: Json, tensor: torch.Tensor) -> Iterator[Callable[[], object]]:
        live = tensor.grad if has_grad(tensor) else None
        if node is None:
            if live is not None:
                yield lambda: setattr(tensor, "grad", None)
            return
        if node["is"] == "lost":
            return
        if (
            live is not None
            and node["is"] == "tensor"
            and fits(live, value := self._image.table.view(node["row"]))
        ):
            yield lambda: write_elements(live, value)
            return
        grad = decode(node, self._thaw, None, lambda device: tensor.device)
        yield lambda: setattr(tensor, "grad", grad)

    def _optimizer(self, kept: Json, optimizer: Optimizer) -> Iterator[Callable[[], object]]:
        live = held_by(optimizer)
        for then, param in zip(kept["held"], live, strict=True):
            if "tensor" in then:
                yield from self._tensor(then["tensor"], param)
        for then, group in zip(kept["groups"], optimizer.param_groups, strict=True):
            yield self._options(then["options"], group, optimizer)
        yield self._state(kept, optimizer)
        if kept["moved"] is not None and isinstance(optimizer, LBFGS):
            yield partial(set_moved, optimizer, [live[index] for index in kept["moved"]])

    def _options(self, node: Json, group: dict[str, Any], optimizer: Optimizer) -> Callable[[], None]:
        now = options_of(group)
        options = decode(node, self._thaw, now, present_device)
        known = optimizer.defaults.keys() | options.keys()
        strange = [name for name in now if name not in known]

        def put() -> None:
            for name in strange:
                del group[name]
            for name, value in options.items():
                group[name] = put_in_place(group.get(name), value)

        return put

    def _state(self, kept: Json, optimizer: Optimizer) -> Callable[[], None]:
        held = held_by(optimizer)
        wanted: dict[Any, Any] = {}
        for entry in kept["state"]:
            key, device = self._key(entry, kept, held)
            now = optimizer.state.get(key)
            wanted[key] = decode(entry["value"], self._thaw, now, device)
        live, fresh = Counter(storages(dict(optimizer.state))), Counter(storages(wanted))

        def fill(now: Any, value: Any) -> Any:
            alone = all(live[place] < 2 for place in storages(now)) and all(
                fresh[place] < 2 for place in storages(value)
            )
            return put_in_place(now, value) if alone else value

        def put() -> None:
            for key in [key for key in optimizer.state if key not in wanted]:
                del optimizer.state[key]
            for key, value in wanted.items():
                now = optimizer.state.get(key)
                if isinstance(now, dict) and isinstance(value, dict):
                    items = {name: fill(now.get(name), item) for name, item in value.items()}
                    now.clear()
                    now.update(items)
                else:
                    optimizer.state[key] = value

        return put

    def _key(
        self, entry: Json, kept: Json, held: list[torch.Tensor]
    ) -> tuple[Any, Callable[[str], str | torch.device]]:
        """The key of optimizer.state for an entry, and where its tensors belong."""
        if "key" in entry:
            return decode(entry["key"], self._thaw), present_device
        of = entry["of"]
        home = kept["held"][of] if isinstance(of, int) else {"model": of[0], "path": of[1]}
        then = home.get("tensor") or self._kept["models"][home["model"]]["tensors"][home["path"]]
        param = held[of] if isinstance(of, int) else self._live[home["model"]][home["path"]]
        return param, lambda device: param.device if device == then["device"] else present_device(device)


def _norm(holds: NormHolds, module: nn.Module, root: nn.Module, *, held: bool) -> Callable[[], object]:
    return (lambda: holds.hold(module, root)) if held else (lambda: holds.release(module))


def _training(module: nn.Module, flag: bool) -> Callable[[], None]:
    def put() -> None:
        module.training = flag

    return put
