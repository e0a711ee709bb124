"""Loading a state_dict as a change: with all that it may touch kept, so that it can be undone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import torch
from torch import nn

from modscope_server.inspection.changes import Change
from modscope_server.inspection.lookup import tensor_at
from modscope_server.inspection.memento import Memento
from modscope_server.inspection.parameters import located_buffers, located_parameters
from modscope_server.inspection.state_dict import LoadPlan, apply_load, prepare_load

__all__ = ["LoadReport", "plan_load"]


class LoadReport:
    """What a load tells besides its notes."""

    def __init__(self, plan: LoadPlan) -> None:
        self.missing = list(plan.missing)
        """Keys of the model that were not sent."""
        self.unexpected = list(plan.unexpected)
        """Keys that were sent and that the model does not have."""


def plan_load(
    root: nn.Module, given: Mapping[str, torch.Tensor], strict: bool, plan: LoadPlan, report: LoadReport
) -> Change:
    """Plan to load in place what `check_load` has admitted; `report` learns what the load itself told.

    Raises what `prepare_load` raises.
    """
    load = prepare_load(root, given, strict, plan)
    names = [name for key, name in load.plan.names.items() if key in given]
    memento, known = Memento(), {}
    found = {name: place.tensor for name in names if (place := tensor_at(root, name)) is not None}
    times = Counter(map(id, found.values()))
    for name, tensor in found.items():
        memento.keep_tensor(name, tensor)
        # Of a tensor with two keys the value that is loaded last stays.
        if times[id(tensor)] == 1 and not load.plan.custom and tensor.shape == load.state[name].shape:
            known[name] = load.state[name]
    if load.plan.custom:
        for one in (*located_parameters(root), *located_buffers(root)):
            memento.keep_tensor(one.path, one.tensor)

    def apply() -> tuple[str, ...]:
        report.missing, report.unexpected = apply_load(root, load, strict)
        return ()

    return Change(tuple(names), memento, apply, known=known)
