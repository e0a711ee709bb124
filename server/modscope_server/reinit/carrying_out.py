"""Carrying a planned reinitialisation out, in place, whole or not at all."""

from __future__ import annotations

import secrets
from collections.abc import Mapping

import torch

from modscope.paths import join
from modscope_server.errors import NotFinite, SchemeUnsuitable
from modscope_server.inspection.backup import Backup, Bindings, writing_to
from modscope_server.inspection.casting import finite_elements
from modscope_server.inspection.counts import reachable
from modscope_server.inspection.members import Kind, tensors
from modscope_server.inspection.randomness import keeping_random_state, seed_torch
from modscope_server.reinit.plan import Action, Plan
from modscope_server.reinit.schemes import Scheme, Value, find_scheme
from modscope_server.reinit.suitability import reset_method

__all__ = ["apply"]

_KINDS: tuple[Kind, ...] = ("_parameters", "_buffers")


def apply(plan: Plan, *, kept: bool = False) -> None:
    """Carry a plan out, in place; every global random state is afterwards as before.

    With a seed the values are those of torch.manual_seed(seed) and model.apply; a tied tensor gets its
    value at its first visit alone. Tensors keep their identity. Where something raises, or a scheme leaves
    a value that is not finite, every tensor is put back bit for bit; where `kept` by the caller, who has
    all values. Raises SchemeUnsuitable and NotFinite.
    """
    scheme = find_scheme(plan.scheme)
    bindings, backup = Bindings(plan.reach), None if kept else Backup()
    try:
        with keeping_random_state(), torch.inference_mode(False), torch.no_grad():
            seed_torch(secrets.randbits(64) if plan.seed is None else plan.seed)
            for action in plan.actions:
                if scheme is None:
                    _reset(action, backup)
                else:
                    _fill(action, scheme, plan.arguments, backup)
    except BaseException:
        bindings.restore()
        if backup is not None:
            backup.restore()
        raise


def _fill(action: Action, scheme: Scheme, arguments: Mapping[str, Value], backup: Backup | None) -> None:
    for name, tensor in action.targets:
        path = join(action.path, name)
        if not tensor.numel():
            continue
        if backup is not None:
            backup.keep(tensor)
        try:
            scheme.fill(tensor, **arguments)
        except Exception as error:
            raise SchemeUnsuitable(
                f"{scheme.name} failed at {path}: {error}", hint="nothing was changed"
            ) from None
        if (tensor.is_floating_point() or tensor.is_complex()) and not bool(finite_elements(tensor).all()):
            raise NotFinite(
                f"{scheme.name} left values in {path} that are not finite",
                hint="nothing was changed; use arguments that its dtype can hold",
                field="arguments",
            )


def _reset(action: Action, backup: Backup | None) -> None:
    below = reachable(action.module)
    bindings = Bindings(below)
    if backup is not None:
        for tensor in (t for one in below for kind in _KINDS for _, t in tensors(one, kind)):
            backup.keep(tensor)
    method = reset_method(action.module)
    settled = [(tensor, tensor.detach().clone()) for tensor in action.settled]
    try:
        if method is not None:
            method()
        bindings.settle()
        for tensor, value in settled:
            with writing_to(tensor):
                tensor.copy_(value)
    except Exception as error:
        raise SchemeUnsuitable(
            f"reset_parameters failed at {action.path!r}: {type(error).__name__}: {error}",
            hint="nothing was changed; leave that module out by glob or type",
            field="scheme",
        ) from None
