"""Freezing parameters and thawing them, without breaking the training that goes on."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence

from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from modscope.paths import literal
from modscope_server.errors import DtypeMismatch, NotMaterialized, WouldBreakTraining
from modscope_server.inspection.backup import writing_to
from modscope_server.inspection.counts import reachable
from modscope_server.inspection.distributed import gradient_wrapper
from modscope_server.inspection.members import tensors
from modscope_server.inspection.optimizers import Groups
from modscope_server.inspection.records import LocatedTensor
from modscope_server.inspection.tensors import dtype_name

__all__ = ["freeze", "unfreeze"]

_NAMED = 20


def freeze(
    located: Sequence[LocatedTensor],
    groups: Groups,
    root: nn.Module,
    force: bool = False,
    *,
    scaled: Iterable[Optimizer] = (),
) -> tuple[str, ...]:
    """Set requires_grad to False; what the caller should know comes back as notes.

    A parameter that an optimizer holds gets grad None, since a step would still move it along a zero
    gradient; one that none holds keeps its gradient, zeroed. `scaled`: optimizers that a GradScaler
    steps. Raises WouldBreakTraining, unless `force`, where nothing of the model or of such an optimizer
    would be left to train, or where DDP or FSDP wraps a parameter.
    """
    frozen = {id(place.tensor) for place in located}
    _check_leaves(located)
    if not force:
        _check_freeze(frozen, root, scaled)
    already = sum(not place.tensor.requires_grad for place in located)
    for place in located:
        tensor = place.tensor
        tensor.requires_grad = False
        if tensor.grad is None:
            continue
        if groups.holds(tensor):
            tensor.grad = None
        else:
            with writing_to(tensor.grad):
                tensor.grad.zero_()
    return _already(already, len(located), "frozen")


def unfreeze(located: Sequence[LocatedTensor], groups: Groups, root: nn.Module) -> tuple[str, ...]:
    """Set requires_grad to True; what the caller should know comes back as notes.

    Raises DtypeMismatch where one of the tensors has a dtype that takes no gradient.
    """
    for place in located:
        if not (place.tensor.is_floating_point() or place.tensor.is_complex()):
            raise DtypeMismatch(
                f"{place.path} is {dtype_name(place.tensor)}, which takes no gradient",
                hint="select float or complex parameters only",
                field="glob",
            )
    _check_leaves(located)
    already = sum(place.tensor.requires_grad for place in located)
    wrapper = _wrapper_around(root, {id(place.tensor) for place in located if not place.tensor.requires_grad})
    for place in located:
        place.tensor.requires_grad = True
    notes = _already(already, len(located), "trainable")
    if wrapper:
        notes += (f"{wrapper} was built while they were frozen: it will not reduce their gradients",)
    unheld = [place.path for place in located if not groups.holds(place.tensor)]
    if unheld:
        more = f" and {len(unheld) - _NAMED} more" if len(unheld) > _NAMED else ""
        notes += (
            f"no optimizer holds {', '.join(unheld[:_NAMED])}{more}: to have them trained, "
            f"modscope optim add {shlex.quote(_glob(unheld))}",
        )
    return notes


def _check_leaves(located: Sequence[LocatedTensor]) -> None:
    for place in located:
        if is_lazy(place.tensor):
            continue
        if not place.tensor.is_leaf or place.tensor.is_inference():
            why = (
                "was made under inference_mode" if place.tensor.is_inference() else "is computed from others"
            )
            raise NotMaterialized(
                f"{place.path} {why}: its requires_grad is fixed", hint="select the parameters behind it"
            )


def _check_freeze(frozen: set[int], root: nn.Module, scaled: Iterable[Optimizer]) -> None:
    trainable = {
        id(tensor)
        for module in reachable(root)
        for _, tensor in tensors(module, "_parameters")
        if tensor.requires_grad
    }
    if trainable and trainable <= frozen:
        raise WouldBreakTraining(
            "no parameter of the model would stay trainable: backward() would raise",
            hint="leave one trainable, or use force=True (--force)",
        )
    for optimizer in scaled:
        held = {id(t) for group in optimizer.param_groups for t in group["params"] if t.requires_grad}
        if held and held <= frozen:
            raise WouldBreakTraining(
                f"nothing in {type(optimizer).__name__} would stay trainable: GradScaler.step would raise",
                hint="leave one of its parameters trainable, or use force=True (--force)",
            )
    wrapper = _wrapper_around(root, frozen & trainable)
    if wrapper:
        raise WouldBreakTraining(
            f"{wrapper} wraps them and waits for each one's gradient on every rank",
            hint="freeze before wrapping, on every rank; or use force=True (--force)",
        )


def _wrapper_around(root: nn.Module, ids: set[int]) -> str:
    """ "DDP" or "FSDP" where one of these tensors is below such a wrapper; "" where none is."""
    for module in reachable(root) if ids else ():
        name = gradient_wrapper(module)
        if name and any(
            id(t) in ids for below in reachable(module) for _, t in tensors(below, "_parameters")
        ):
            return name
    return ""


def _already(already: int, total: int, what: str) -> tuple[str, ...]:
    return (f"{already} of {total} were {what} before",) if already else ()


def _glob(paths: Sequence[str]) -> str:
    """A glob that matches these parameter paths alone."""
    escaped = [literal(path) for path in paths]
    return escaped[0] if len(escaped) == 1 else "{" + ",".join(escaped) + "}"
