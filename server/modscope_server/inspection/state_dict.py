"""The state_dict: what it holds, whether another one fits, and loading that, all of it or nothing."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm

from modscope.paths import join
from modscope_server.errors import (
    BadRequest,
    DtypeMismatch,
    KeysMismatch,
    NotMaterialized,
    ShapeMismatch,
)
from modscope_server.inspection.backup import Backup, Bindings
from modscope_server.inspection.casting import converted, may_convert
from modscope_server.inspection.commands import named
from modscope_server.inspection.counts import reachable
from modscope_server.inspection.distributed import refuse_on_one_rank
from modscope_server.inspection.edits import overlaps_itself
from modscope_server.inspection.lookup import tensor_at
from modscope_server.inspection.members import tensors
from modscope_server.inspection.tensors import dtype_name, dtype_named, unreadable_reason
from modscope_server.inspection.walk import Visit, walk

__all__ = ["Load", "LoadPlan", "Spec", "apply_load", "check_load", "entries", "prepare_load"]

Spec: TypeAlias = tuple[str, str, tuple[int, ...]]
"""Key, dtype name and shape of a tensor to load."""

_EXTRA_STATE = "_extra_state"
_TRACKED = "num_batches_tracked"
_PLAIN_LOADERS = tuple(cls._load_from_state_dict for cls in (nn.Module, _NormBase, _InstanceNorm))


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """How a state_dict that was announced fits the model."""

    keys: tuple[str, ...]
    """The model's own keys."""
    names: Mapping[str, str]
    """Key as it was sent -> key of the model."""
    missing: tuple[str, ...]
    """Keys of the model that were not sent, in its order."""
    unexpected: tuple[str, ...]
    """Keys that were sent and that the model does not have, as they were sent."""
    custom: bool
    """Whether a module has its own way to load: then the load itself has the last word on keys."""


def entries(root: nn.Module) -> tuple[list[tuple[str, torch.Tensor]], list[str]]:
    """The tensors of model.state_dict() by key, live and detached, and the keys that are not carried.

    Not carried are values that are no tensors, and `_extra_state`. Raises WouldBreakTraining where
    other ranks would have to take part.
    """
    state = _state_dict(root)
    carried = _carried(state)
    return list(carried.items()), [key for key in state if key not in carried]


def check_load(root: nn.Module, specs: Sequence[Spec], strict: bool = True) -> LoadPlan:
    """Whether tensors of these keys, dtypes and shapes can be loaded; changes nothing.

    Keys are those of model.state_dict(), or the same without wrapper prefixes. Raises KeysMismatch
    under `strict`; ShapeMismatch, DtypeMismatch and NotMaterialized with every tensor of that kind
    named; UnknownDtype; BadRequest for a key that was sent twice.
    """
    own = _carried(_state_dict(root))
    visits = walk(root).visits
    names, unexpected = _matched(root, [key for key, _, _ in specs], own)
    sent = set(names.values())
    missing = [key for key in own if key not in sent]
    filled_in = _filled_in(visits, missing)
    missing = [key for key in missing if key not in filled_in]
    loaders = [visit.raw_path for visit in visits if _loads_its_own_way(visit.module)]
    if strict:
        _refuse_keys(
            [key for key in missing if not _below(key, loaders)],
            [key for key in unexpected if not _below(key, loaders)],
        )
    _check_specs(own, names, specs)
    return LoadPlan(tuple(own), names, tuple(missing), tuple(unexpected), bool(loaders))


@dataclass(frozen=True, slots=True)
class Load:
    """A state_dict of which nothing keeps the model from loading it."""

    plan: LoadPlan
    state: Mapping[str, torch.Tensor]
    """What is loaded, in the model's own keys and dtypes."""
    inference: bool
    """Whether a tensor of the model was made under inference_mode."""


def prepare_load(root: nn.Module, given: Mapping[str, torch.Tensor], strict: bool, plan: LoadPlan) -> Load:
    """Make what `check_load` has admitted ready to be loaded; changes nothing.

    Checks anew where the model's keys have changed since the plan was made. Raises what `check_load`
    raises, and NotFinite for a value that the model's dtype cannot hold.
    """
    current = _state_dict(root)
    own = _carried(current)
    specs = [(key, dtype_name(tensor), tuple(tensor.shape)) for key, tensor in given.items()]
    if tuple(own) != plan.keys or given.keys() != plan.names.keys() | set(plan.unexpected):
        plan = check_load(root, specs, strict)
    else:
        _check_specs(own, plan.names, specs)
        if strict and not plan.custom:
            _refuse_keys(plan.missing, plan.unexpected)
    state: OrderedDict[str, torch.Tensor] = OrderedDict()
    for key, tensor in given.items():
        name = plan.names.get(key, key)
        if not _is_extra_state(name):
            state[name] = converted(tensor, own[name].dtype, name) if name in own else tensor
    state._metadata = _metadata(root, current, state)  # type: ignore[attr-defined]
    return Load(plan, state, any(t.is_inference() for t in own.values()))


def apply_load(root: nn.Module, load: Load, strict: bool) -> tuple[list[str], list[str]]:
    """Load in place what `prepare_load` gave; gives load_state_dict's missing and unexpected keys.

    Where a module's own way to load raises, the model is put back as it was. Raises ShapeMismatch and
    KeysMismatch.
    """
    modules, plan = reachable(root), load.plan
    held = [tensor for module in modules for tensor in _own_tensors(module)] if plan.custom else []
    backup, bindings = Backup(held), Bindings(modules)
    try:
        with torch.inference_mode() if load.inference else torch.no_grad():
            report = root.load_state_dict(load.state, strict=False)
        missing, unexpected = _reported(report, plan)
        if strict:
            _refuse_keys(missing, unexpected)
    except BaseException as error:
        bindings.restore()
        backup.restore()
        if not isinstance(error, RuntimeError):
            raise
        refusal = ShapeMismatch if "size mismatch" in str(error) else KeysMismatch
        raise refusal(f"the model refused the state_dict: {error}", hint="nothing of it was loaded") from None
    return missing, unexpected


def _state_dict(root: nn.Module) -> Mapping[str, Any]:
    refuse_on_one_rank(root, "gathering its state_dict")
    with torch.no_grad():
        state: Mapping[str, Any] = root.state_dict()
    return state


def _carried(state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    return {
        key: value
        for key, value in state.items()
        if isinstance(value, torch.Tensor) and not _is_extra_state(key)
    }


def _is_extra_state(key: str) -> bool:
    return key.rpartition(".")[2] == _EXTRA_STATE


def _matched(
    root: nn.Module, sent: Sequence[str], own: Mapping[str, torch.Tensor]
) -> tuple[dict[str, str], list[str]]:
    """Sent key -> own key, and the sent keys that mean none of the model's."""
    twice = [key for key, times in Counter(sent).items() if times > 1]
    if twice:
        raise BadRequest(f"sent more than once: {named(twice)}", hint="send each key once", field="entries")
    strangers = [key for key in sent if key not in own]
    names = {key: key for key in sent if key in own}
    if strangers:
        free = {_path(root, key): key for key in own if key not in names}
        for key in strangers:
            name = free.pop(_path(root, key), None)
            if name is not None:
                names[key] = name
    return names, [key for key in strangers if key not in names and not _is_extra_state(key)]


def _path(root: nn.Module, key: str) -> str:
    """The key without wrapper prefixes, whichever of them it has."""
    located = tensor_at(root, key)
    return key if located is None else located.path


def _filled_in(visits: Iterable[Visit], missing: Iterable[str]) -> set[str]:
    """Counters that PyTorch fills in itself where a state_dict of before they existed lacks them."""
    lacking = {key for key in missing if key.endswith(_TRACKED)}
    norms = (visit for visit in visits if lacking and isinstance(visit.module, _NormBase))
    return lacking & {join(visit.raw_path, _TRACKED) for visit in norms}


def _metadata(root: nn.Module, current: Mapping[str, Any], state: Mapping[str, Any]) -> dict[str, Any]:
    """The model's own versions, so that no module migrates what it has saved itself.

    Only a norm whose counter was not sent gets none: then PyTorch keeps the counter that it has.
    """
    metadata = dict(getattr(current, "_metadata", None) or {})
    for visit in walk(root).visits:
        if isinstance(visit.module, _NormBase) and join(visit.raw_path, _TRACKED) not in state:
            metadata[visit.raw_path] = {}
    return metadata


def _loads_its_own_way(module: nn.Module) -> bool:
    cls = type(module)
    return bool(
        module._load_state_dict_pre_hooks
        or module._load_state_dict_post_hooks
        or cls._load_from_state_dict not in _PLAIN_LOADERS
        or cls.load_state_dict is not nn.Module.load_state_dict
        or torch.__future__.get_swap_module_params_on_conversion()
    )


def _below(key: str, paths: Iterable[str]) -> bool:
    return any(not path or key.startswith(f"{path}.") for path in paths)


def _check_specs(own: Mapping[str, torch.Tensor], names: Mapping[str, str], specs: Sequence[Spec]) -> None:
    shapes: list[str] = []
    dtypes: list[str] = []
    closed: list[str] = []
    for key, dtype, shape in specs:
        target = own.get(names.get(key, ""))
        if target is None:
            continue
        reason = unreadable_reason(target)
        if reason or overlaps_itself(target):
            closed.append(f"{key} ({reason or 'its elements share memory'})")
        elif tuple(target.shape) != shape and (shape, target.ndim) != ((1,), 0):
            shapes.append(f"{key} is {list(target.shape)}, got {list(shape)}")
        elif not may_convert(dtype_named(dtype), target.dtype):
            dtypes.append(f"{key} is {dtype_name(target)}, got {dtype}")
    if closed:
        raise NotMaterialized(f"cannot be loaded: {named(closed)}", hint="materialize the model first")
    if shapes:
        raise ShapeMismatch(
            f"{len(shapes)} of {len(specs)} tensors have another shape: {named(shapes, '; ')}",
            hint="load into a model of the same sizes, or leave these out under strict=False (--no-strict)",
            field="entries",
        )
    if dtypes:
        raise DtypeMismatch(
            f"{len(dtypes)} of {len(specs)} tensors cannot become the model's dtype: {named(dtypes, '; ')}",
            hint="whole numbers may become real and real ones complex, not the other way",
            field="entries",
        )


def _refuse_keys(missing: Sequence[str], unexpected: Sequence[str]) -> None:
    if not missing and not unexpected:
        return
    parts = []
    if missing:
        parts.append(f"{len(missing)} missing: {named(missing)}")
    if unexpected:
        parts.append(f"{len(unexpected)} unexpected: {named(unexpected)}")
    raise KeysMismatch(
        f"the keys are not the model's; {'; '.join(parts)}",
        hint="modscope state keys lists the model's; strict=False (--no-strict) loads what fits",
        missing=named(missing),
        unexpected=named(unexpected),
    )


def _reported(report: Any, plan: LoadPlan) -> tuple[list[str], list[str]]:
    """What load_state_dict told, without the keys that are not carried; a model's own may tell nothing."""
    if report is None:
        return list(plan.missing), list(plan.unexpected)
    missing, unexpected = report
    return [key for key in missing if not _is_extra_state(key)], list(unexpected)


def _own_tensors(module: nn.Module) -> list[torch.Tensor]:
    return [tensor for kind in ("_parameters", "_buffers") for _, tensor in tensors(module, kind)]
