"""What people watch a model with: hooks of their own, TensorBoard's histograms, wandb.watch.

Each is a context manager over a loop, and gives what is to be called after each step.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.processes import environment
from benchmarks.watch_models import Loop

__all__ = ["has_wandb", "lean_hooks", "naive_hooks", "tensorboard_histograms", "wandb_run"]

_WANDB = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"}


@contextlib.contextmanager
def lean_hooks(loop: Loop) -> Iterator[Callable[[], None]]:
    """Hooks as one writes them who knows what is fast: the reductions of the statistics, in five passes."""

    def reduce(output: torch.Tensor) -> tuple[float, ...]:
        flat = output.detach().view(-1)
        low, high = torch.aminmax(flat)
        values = low, high, flat.sum(), torch.dot(flat, flat), torch.count_nonzero(flat)
        return tuple(value.item() for value in values)

    with _reducing(loop, reduce) as after_step:
        yield after_step


@contextlib.contextmanager
def naive_hooks(loop: Loop) -> Iterator[Callable[[], None]]:
    """Hooks as one writes them at first: std_mean and aminmax of each output."""

    def reduce(output: torch.Tensor) -> tuple[float, ...]:
        values = *torch.std_mean(output.detach(), correction=0), *torch.aminmax(output.detach())
        return tuple(value.item() for value in values)

    with _reducing(loop, reduce) as after_step:
        yield after_step


@contextlib.contextmanager
def tensorboard_histograms(loop: Loop) -> Iterator[Callable[[], None]]:
    """SummaryWriter.add_histogram of each module's output, by forward hooks."""
    from torch.utils.tensorboard import SummaryWriter

    paths = {module: path or "model" for path, module in loop.model.named_modules()}
    step = 0
    with tempfile.TemporaryDirectory(prefix="msb-") as place, SummaryWriter(place) as writer:

        def write(module: nn.Module, args: Any, output: Any) -> None:
            for key, tensor in _tensors(output):
                writer.add_histogram(paths[module] + key, tensor.detach(), step)

        def after_step() -> None:
            nonlocal step
            step += 1

        with _on_all_modules(loop, write):
            yield after_step
        writer.flush()
        assert any(file.stat().st_size > 1000 for file in Path(place).iterdir())


@contextlib.contextmanager
def wandb_run() -> Iterator[Callable[[Loop], contextlib.AbstractContextManager[Callable[[], None]]]]:
    """An offline run of wandb, which leaves nothing behind. Gives `wandb.watch` of all, at each step."""
    with tempfile.TemporaryDirectory(prefix="msb-") as place:
        places = {f"WANDB_{name}_DIR": place for name in ("CACHE", "CONFIG", "DATA", "ARTIFACT")}
        with environment({**_WANDB, **places, "WANDB_DIR": place}):
            import wandb

            settings = wandb.Settings(console="off", x_disable_stats=True, disable_git=True, save_code=False)
            with wandb.init(project="benchmark", dir=place, settings=settings) as run:

                @contextlib.contextmanager
                def watch(loop: Loop) -> Iterator[Callable[[], None]]:
                    # idx keeps the names of what is logged the same from block to block.
                    run.watch(loop.model, log="all", log_freq=1, idx=0)
                    try:
                        yield lambda: run.log({"steps": 1})
                    finally:
                        run.unwatch(loop.model)

                yield watch
            wandb.teardown()


def has_wandb() -> bool:
    """Whether it is installed."""
    return find_spec("wandb") is not None


@contextlib.contextmanager
def _reducing(
    loop: Loop, reduce: Callable[[torch.Tensor], tuple[float, ...]]
) -> Iterator[Callable[[], None]]:
    """Hooks that keep the latest reductions of each module's output."""
    latest: dict[nn.Module, list[tuple[float, ...]]] = {}

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        latest[module] = [reduce(tensor) for _, tensor in _tensors(output)]

    with _on_all_modules(loop, keep):
        yield lambda: None
    assert latest


@contextlib.contextmanager
def _on_all_modules(loop: Loop, hook: Callable[[nn.Module, Any, Any], None]) -> Iterator[None]:
    handles = [module.register_forward_hook(hook) for module in loop.model.modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _tensors(output: Any, key: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors in what a module returned, however nested, and where they are in it."""
    if isinstance(output, torch.Tensor):
        yield key, output
    elif isinstance(output, Mapping):
        for name, value in output.items():
            yield from _tensors(value, f"{key}.{name}")
    elif isinstance(output, tuple | list):
        for index, value in enumerate(output):
            yield from _tensors(value, f"{key}.{index}")
