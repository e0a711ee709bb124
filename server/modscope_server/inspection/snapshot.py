"""Taking a snapshot: a whole run, copied at one write point."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import LBFGS, Optimizer

from modscope.paths import join
from modscope_server.errors import NotMaterialized
from modscope_server.inspection.commands import named
from modscope_server.inspection.extras import left_out, stateful
from modscope_server.inspection.members import tensors
from modscope_server.inspection.norm_stats import NormHolds
from modscope_server.inspection.param_groups import held_by, options_of
from modscope_server.inspection.randomness import random_state
from modscope_server.inspection.tensor_table import Collector, Table
from modscope_server.inspection.tensors import dtype_name, has_grad, shape_of, unreadable_reason
from modscope_server.inspection.value_codec import Encoder, Json
from modscope_server.inspection.walk import walk

__all__ = ["Image", "Run", "model_tensors", "place_of", "take"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """The live parts of a run: all that a snapshot holds."""

    models: Mapping[str, nn.Module]
    optimizers: Sequence[Optimizer]
    extras: Mapping[str, Any]
    """What else attach was given, by name."""
    holds: NormHolds
    """Layers whose running statistics are frozen."""
    step_count: Callable[[], int]
    set_step_count: Callable[[int], None]

    @property
    def all_optimizers(self) -> list[Optimizer]:
        """The optimizers, those among the extras too."""
        more = [extra for extra in self.extras.values() if isinstance(extra, Optimizer)]
        return [
            *self.optimizers,
            *(one for one in more if not any(one is other for other in self.optimizers)),
        ]

    @property
    def other_extras(self) -> dict[str, Any]:
        """The extras that are neither optimizers nor models of the run, which it holds anyway."""
        roots = {id(root) for root in self.models.values()}
        return {
            name: extra
            for name, extra in self.extras.items()
            if extra is not None and not isinstance(extra, Optimizer) and id(extra) not in roots
        }


@dataclass(frozen=True, eq=False)
class Image:
    """A run as it was at one step: JSON, and the tensors that it refers to. Never changed."""

    run: Json
    """Models, optimizers, random states, extras, step and place; tensors as rows of the table."""
    table: Table
    notes: tuple[str, ...] = ()
    """What it could not take along, and why."""

    @property
    def step(self) -> int:
        """step_count at which it was taken."""
        return int(self.run["step"])

    @property
    def place(self) -> str | None:
        """Where in an iteration of the loop it was taken; None beside the loop."""
        place: str | None = self.run["place"]
        return place

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return self.table.nbytes

    @property
    def parts(self) -> tuple[str, ...]:
        """What it holds, by name: models, "optimizer", "random", extras."""
        optimizer = ("optimizer",) if self.run["optimizers"] else ()
        return (*self.run["models"], *optimizer, "random", *self.run["extras"])


def take(run: Run, place: str | None, reserve: Callable[[int], None]) -> Image:
    """Copy the whole run. Called at a write point; changes nothing.

    `reserve` is told the bytes that the copies will take before they are made, and may refuse. Raises
    NotMaterialized, naming every tensor that has no elements to be copied.
    """
    taker = _Taker(run)
    taken: Json = {
        "step": run.step_count(),
        "place": place,
        "models": {name: taker.model(name, root) for name, root in run.models.items()},
        "optimizers": [taker.optimizer(at, one) for at, one in enumerate(run.all_optimizers)],
        "extras": taker.extras(),
        "random": taker.encoder.encode(random_state(), "random"),
    }
    taker.refuse_unreadable()
    reserve(taker.collector.nbytes)
    return Image(taken, taker.collector.copy(), taker.notes)


def model_tensors(root: nn.Module) -> dict[str, torch.Tensor]:
    """All parameters and buffers by path, persistent or not; a tied tensor under each of its paths."""
    return {
        join(visit.path, name): tensor
        for visit in walk(root).visits
        if visit.first
        for kind in ("_parameters", "_buffers")
        for name, tensor in tensors(visit.module, kind)
    }


def place_of(models: Mapping[str, nn.Module]) -> dict[int, tuple[str, str]]:
    """Model and path of each tensor of the models, by its id."""
    found: dict[int, tuple[str, str]] = {}
    for name, root in models.items():
        for path, tensor in model_tensors(root).items():
            found.setdefault(id(tensor), (name, path))
    return found


class _Taker:
    """Collects the parts of one snapshot."""

    def __init__(self, run: Run) -> None:
        self.collector = Collector()
        self.encoder = Encoder(self.collector)
        self._run = run
        self._places = place_of(run.models)
        self._unreadable: dict[str, str] = {}
        self._notes: list[str] = []

    @property
    def notes(self) -> tuple[str, ...]:
        lost = [f"{name} is left out: {what}" for name, what in self.encoder.lost.items()]
        return (*self._notes, *lost)

    def refuse_unreadable(self) -> None:
        if self._unreadable:
            told = named(f"{name} ({why})" for name, why in self._unreadable.items())
            raise NotMaterialized(
                f"cannot be copied: {told}",
                hint="run the model once, or materialize it, then save again",
            )

    def model(self, name: str, root: nn.Module) -> Json:
        visits = walk(root).visits
        return {
            "tensors": {
                path: self._tensor(tensor, f"{name}/{path}") for path, tensor in model_tensors(root).items()
            },
            "training": {
                visit.path: visit.module.training for visit in visits if visit.first and not visit.hidden
            },
            "wrappers": {
                visit.raw_path: visit.module.training for visit in visits if visit.first and visit.hidden
            },
            "held": [visit.path for visit in visits if visit.first and visit.module in self._run.holds],
        }

    def optimizer(self, at: int, optimizer: Optimizer) -> Json:
        name, held = f"optimizer/{at}", held_by(optimizer)
        index = {id(param): number for number, param in enumerate(held)}
        if type(optimizer).state_dict is not Optimizer.state_dict:
            self._notes.append(
                f"{type(optimizer).__name__} has a state_dict of its own: its groups and state alone are kept"
            )
        return {
            "type": type(optimizer).__name__,
            "held": [self._held(param, f"{name}/{number}") for number, param in enumerate(held)],
            "groups": [
                {
                    "params": [index[id(param)] for param in group["params"]],
                    "options": self.encoder.encode(options_of(group), f"{name}/group {number}"),
                }
                for number, group in enumerate(optimizer.param_groups)
            ],
            "state": list(self._states(optimizer, index, name)),
            "moved": [index[id(param)] for param in optimizer._params]
            if isinstance(optimizer, LBFGS)
            else None,
        }

    def extras(self) -> Json:
        return dict(self._extras())

    def _extras(self) -> Iterator[tuple[str, Json]]:
        for name, extra in self._run.other_extras.items():
            ways = stateful(extra)
            if ways is None:
                self._notes.append(f"{name} is left out: a {type(extra).__name__} has no state_dict to take")
                continue
            try:
                state = ways.take()
            except Exception as error:
                self._notes.append(
                    f"{name} is left out: its state_dict raised {type(error).__name__}: {error}"
                )
                continue
            if missing := left_out(extra):
                self._notes.append(f"{name}: {missing}")
            yield name, {"type": type(extra).__name__, "state": self.encoder.encode(state, name)}

    def _held(self, param: torch.Tensor, name: str) -> Json:
        home = self._places.get(id(param))
        if home is not None:
            return {"model": home[0], "path": home[1]}
        return {"tensor": self._tensor(param, name)}

    def _states(self, optimizer: Optimizer, index: Mapping[int, int], name: str) -> Iterator[Json]:
        for key, value in list(optimizer.state.items()):
            home = self._places.get(id(key))
            if isinstance(key, torch.Tensor) and home is None and id(key) not in index:
                self._notes.append(
                    f"{name}: its state of a tensor that no group and no model holds is left out"
                )
            elif isinstance(key, torch.Tensor):
                of = index.get(id(key), home)
                where = f"{name}/{home[1] if home else of}"
                yield {"of": of, "value": self.encoder.encode(_plain_dict(value), where)}
            else:
                node = self.encoder.encode(key, f"{name}/key")
                yield {"key": node, "value": self.encoder.encode(value, f"{name}/{key}")}

    def _tensor(self, tensor: torch.Tensor, name: str) -> Json:
        reason = unreadable_reason(tensor)
        if reason:
            self._unreadable[name] = reason
            return None
        grad = self.encoder.tensor(tensor.grad, f"{name}/grad") if has_grad(tensor) else None  # type: ignore[arg-type]
        return {
            "value": self.collector.add(tensor, name),
            "dtype": dtype_name(tensor),
            "shape": list(shape_of(tensor)),
            "device": str(tensor.device),
            "requires_grad": tensor.requires_grad and tensor.is_leaf,
            "grad": grad,
        }


def _plain_dict(value: Any) -> Any:
    """Optimizers' own kinds of dict as what they are: a dict."""
    return dict(value) if isinstance(value, dict) else value
