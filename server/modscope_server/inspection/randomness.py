"""The random states that a model can draw from: kept, seeded, put back."""

from __future__ import annotations

import importlib
import random
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["keeping_random_state", "random_state", "restore_random_state", "seed_torch"]


def random_state() -> dict[str, Any]:
    """The state of every global generator, by whose it is.

    Python's random, numpy's where numpy.random is loaded, torch's on the CPU and on each accelerator
    that is in use.
    """
    states: dict[str, Any] = {"python": random.getstate()}
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        states["numpy"] = numpy_random.get_state()
    states["torch"] = torch.get_rng_state()
    for name, accelerator in _accelerators().items():
        states[name] = accelerator.get_rng_state_all()
    if _mps_in_use():
        states["mps"] = torch.mps.get_rng_state()
    return states


def restore_random_state(states: Mapping[str, Any]) -> tuple[str, ...]:
    """Put the generators back to what `random_state` gave; tells what is not here to be put back.

    An accelerator that is not in use is left alone, and a generator that is not in `states`, too.
    """
    notes = []
    random.setstate(states["python"])
    if "numpy" in states:
        # Loaded later it would seed itself anew.
        importlib.import_module("numpy.random").set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    accelerators = _accelerators()
    for name in ("cuda", "xpu"):
        if name not in states:
            continue
        accelerator, kept = accelerators.get(name), states[name]
        here = 0 if accelerator is None else accelerator.device_count()
        if here != len(kept):
            notes.append(
                f"the random states of {len(kept)} {name} devices are kept, and {here} are in use here"
            )
        for index, state in enumerate(kept[:here]):
            accelerators[name].set_rng_state(state, index)
    if "mps" in states:
        if _mps_in_use():
            torch.mps.set_rng_state(states["mps"])
        else:
            notes.append("the random state of mps is kept, and it is not in use here")
    return tuple(notes)


@contextmanager
def keeping_random_state() -> Iterator[None]:
    """Whatever is drawn or seeded inside, every global generator is afterwards as before."""
    states = random_state()
    try:
        yield
    finally:
        restore_random_state(states)


def seed_torch(seed: int) -> None:
    """Seed as torch.manual_seed does, but touch no accelerator that is not in use.

    For those torch.manual_seed leaves a seed that strikes when they are first used.
    """
    torch.default_generator.manual_seed(seed)
    for accelerator in _accelerators().values():
        accelerator.manual_seed_all(seed)
    if _mps_in_use():
        torch.mps.manual_seed(seed)


def _accelerators() -> dict[str, Any]:
    modules = {name: getattr(torch, name, None) for name in ("cuda", "xpu")}
    return {
        name: module for name, module in modules.items() if module is not None and module.is_initialized()
    }


def _mps_in_use() -> bool:
    return torch.backends.mps.is_available()
