"""What the tests of loading share."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from modscope_server.inspection.backup import same_bits
from modscope_server.inspection.state_dict import Spec, apply_load, check_load, entries, prepare_load
from modscope_server.inspection.tensors import dtype_name


def specs_of(state: Mapping[str, Tensor]) -> list[Spec]:
    return [(key, dtype_name(tensor), tuple(tensor.shape)) for key, tensor in state.items()]


def load(root: nn.Module, state: Mapping[str, Tensor], strict: bool = True) -> tuple[list[str], list[str]]:
    plan = check_load(root, specs_of(state), strict)
    missing, unexpected = apply_load(root, prepare_load(root, state, strict, plan), strict)
    if not plan.custom:
        assert list(plan.missing) == missing
        assert sorted(plan.unexpected) == sorted(unexpected)
    return missing, unexpected


def copies(root: nn.Module) -> dict[str, Tensor]:
    return {key: tensor.clone(memory_format=torch.contiguous_format) for key, tensor in entries(root)[0]}


def other_values(root: nn.Module) -> dict[str, Tensor]:
    """A state_dict of the same keys with other bits."""
    state = copies(root)
    for tensor in state.values():
        if tensor.dtype is torch.bool:
            tensor.logical_not_()
        elif tensor.numel():
            raw = tensor.view(torch.uint8) if tensor.ndim else tensor.reshape(1).view(torch.uint8)
            raw.bitwise_xor_(1)
    return state


def same_states(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    return list(left) == list(right) and all(same_bits(left[key], right[key]) for key in left)
