"""The random states that a model can draw from: kept, seeded, put back."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["keeping_random_state", "seed_torch"]


@contextmanager
def keeping_random_state() -> Iterator[None]:
    """Whatever is drawn or seeded inside, every global generator is afterwards as before.

    Python's random, numpy's where numpy.random is loaded, torch's on the CPU and on each accelerator
    that is in use.
    """
    restore: list[Callable[[], Any]] = []
    state = random.getstate()
    restore.append(lambda: random.setstate(state))
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_state = numpy_random.get_state()
        restore.append(lambda: numpy_random.set_state(numpy_state))
    torch_state = torch.get_rng_state()
    restore.append(lambda: torch.set_rng_state(torch_state))
    for accelerator in _accelerators():
        restore.append(_restorer(accelerator, accelerator.get_rng_state_all()))
    if _mps_in_use():
        mps_state = torch.mps.get_rng_state()
        restore.append(lambda: torch.mps.set_rng_state(mps_state))
    try:
        yield
    finally:
        for put_back in restore:
            put_back()


def seed_torch(seed: int) -> None:
    """Seed as torch.manual_seed does, but touch no accelerator that is not in use.

    For those torch.manual_seed leaves a seed that strikes when they are first used.
    """
    torch.default_generator.manual_seed(seed)
    for accelerator in _accelerators():
        accelerator.manual_seed_all(seed)
    if _mps_in_use():
        torch.mps.manual_seed(seed)


def _restorer(accelerator: Any, states: list[torch.Tensor]) -> Callable[[], Any]:
    return lambda: accelerator.set_rng_state_all(states)


def _accelerators() -> list[Any]:
    modules = (getattr(torch, name, None) for name in ("cuda", "xpu"))
    return [module for module in modules if module is not None and module.is_initialized()]


def _mps_in_use() -> bool:
    return torch.backends.mps.is_available()
