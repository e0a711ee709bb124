"""A reinitialisation as a change: what it touches is kept, optimizers begin anew with it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from modscope_server.inspection.changes import Change
from modscope_server.inspection.commands import named
from modscope_server.inspection.members import tensors
from modscope_server.inspection.memento import Memento
from modscope_server.inspection.optimizer_memory import keep_memory
from modscope_server.inspection.optimizers import Groups
from modscope_server.inspection.parameters import located_buffers, located_parameters
from modscope_server.reinit.carrying_out import apply
from modscope_server.reinit.plan import Plan, plan
from modscope_server.reinit.schemes import RESET_PARAMETERS, Value

__all__ = ["plan_reinitialize"]


def plan_reinitialize(
    root: nn.Module,
    glob: str = "*",
    type: str = "",
    parameter: str | None = None,
    scheme: str = RESET_PARAMETERS,
    arguments: Mapping[str, Value] | None = None,
    seed: int | None = None,
    *,
    groups: Groups | None = None,
    keep_optimizer_state: bool = False,
) -> Change:
    """Plan to initialise parameters anew, as `plan` checks it and `apply` does it.

    Optimizers forget what they keep of each parameter that got new values, unless `keep_optimizer_state`.
    The paths are in the order of initialisation, all names of a tied tensor together. Raises what `plan`
    raises.
    """
    made = plan(root, glob, type, parameter, scheme, arguments, seed)
    groups = groups or Groups.of(())
    memento = Memento()
    for step in made.steps:
        for path in (step.path, *step.aliases):
            memento.keep_tensor(path, step.tensor)
    own = {id(step.tensor) for step in made.steps}
    others = _within_reach(root, made, own)
    for path, tensor in others:
        memento.keep_tensor(path, tensor)
    if not keep_optimizer_state:
        reached = [step.tensor for step in made.steps] + [tensor for _, tensor in others]
        for optimizer, params in groups.by_optimizer(reached):
            keep_memory(memento, optimizer, params)

    def carry_out() -> tuple[str, ...]:
        apply(made, kept=True)
        changed = [(path, tensor) for path, tensor in others if memento.differs(tensor)]
        new = [step.tensor for step in made.steps] + [tensor for _, tensor in changed]
        notes = [f"reset_parameters changed {named(path for path, _ in changed)}, too"] if changed else []
        restarted = 0
        if not keep_optimizer_state:
            restarted = sum(groups.clear_state(tensor) for tensor in new)
        if restarted:
            notes.append(f"the optimizer's state of {restarted} tensors begins anew")
        return tuple(notes)

    return Change(made.paths, memento, carry_out)


def _within_reach(root: nn.Module, made: Plan, own: set[int]) -> list[tuple[str, torch.Tensor]]:
    """Path and tensor of what a module's reset_parameters may change besides the module's own parameters."""
    if made.scheme != RESET_PARAMETERS:
        return []
    reached = {
        id(tensor)
        for module in made.reach
        for kind in ("_parameters", "_buffers")
        for _, tensor in tensors(module, kind)
    } - own
    located = [*located_parameters(root), *located_buffers(root)]
    return [(one.path, one.tensor) for one in located if id(one.tensor) in reached]
