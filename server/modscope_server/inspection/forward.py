"""Running a model so that nothing of it is afterwards other than before."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, cast

import torch
from torch import nn
from torch.autograd.grad_mode import _unsafe_preserve_version_counter
from torch.nn.parameter import is_lazy

from modscope_server.errors import BadRequest, ForwardRaised, NotMaterialized
from modscope_server.inspection.backup import Backup, Bindings
from modscope_server.inspection.distributed import is_a, refuse_on_one_rank
from modscope_server.inspection.members import Kind, tensors
from modscope_server.inspection.parameters import located_buffers, located_parameters
from modscope_server.inspection.randomness import keeping_random_state
from modscope_server.inspection.values import map_tensors, named_tensors
from modscope_server.inspection.walk import walk

__all__ = ["Mode", "run_forward"]

Mode = Literal["eval", "train", "current"]
_MODES = ("eval", "train", "current")
_MESSAGE_LENGTH = 4096
_NAMED_INPUTS = 16


def run_forward(root: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], mode: Mode = "eval") -> Any:
    """What the model returns for these arguments, without gradients.

    Every training flag, buffer (value, identity, version), requires_grad and random state is afterwards
    as before, whatever happens; so are parameters that a module rebinds or renormalises while it runs.
    Autocast and compiled code are left out. Tensors among the arguments are moved to the device of the
    first parameter; a returned tensor shares no memory with the model's own.

    Raises ForwardRaised where the model raises, NotMaterialized where it has uninitialized parameters,
    WouldBreakTraining where other ranks would have to take part, BadRequest for an unknown mode.
    """
    if mode not in _MODES:
        raise BadRequest(f"unknown mode {mode!r}", hint="use eval, train or current", field="mode")
    _check(root)
    modules = [visit.module for visit in walk(root).visits if visit.first]
    device = _device(modules)
    failure = ""
    output = None
    with keeping_random_state(), _kept_as_it_is(modules), _plain_modes(modules):
        try:
            if device is not None:
                args = map_tensors(list(args), lambda tensor: tensor.to(device))
                kwargs = map_tensors(dict(kwargs), lambda tensor: tensor.to(device))
            if mode == "eval":
                root.eval()
            elif mode == "train":
                root.train()
            owned = _storages(modules)
            output = _runner(root)(*args, **kwargs)
            output = map_tensors(output, _apart_from(owned | _storages(modules)))
        except Exception as error:
            failure = f"{type(error).__name__}: {error}"
    # Raised out here, the error holds none of the frames of the failed forward and none of their tensors.
    if failure:
        if len(failure) > _MESSAGE_LENGTH:
            failure = failure[: _MESSAGE_LENGTH - 3] + "..."
        raise ForwardRaised(f"the model raised {failure}", hint=_hint(args, kwargs))
    return output


def _check(root: nn.Module) -> None:
    refuse_on_one_rank(root, "running it")
    for place in (*located_parameters(root), *located_buffers(root)):
        if is_lazy(place.tensor):
            raise NotMaterialized(
                f"{place.path} is uninitialized (lazy): running the model here would fix its shape",
                hint="let the training loop run the model once, then ask again",
            )


def _own_tensors(module: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return tensors(module, "_parameters") + tensors(module, "_buffers")


def _device(modules: Sequence[nn.Module]) -> torch.device | None:
    """Device of the first parameter that has data, else of the first such buffer."""
    kinds: tuple[Kind, ...] = ("_parameters", "_buffers")
    found = (tensor for kind in kinds for module in modules for _, tensor in tensors(module, kind))
    return next((tensor.device for tensor in found if not tensor.is_meta), None)


def _runner(root: nn.Module) -> Callable[..., Any]:
    """The module to call: a DDP wrapper would broadcast buffers, which waits for the other ranks."""
    return cast("nn.Module", root.module) if is_a(root, "DistributedDataParallel") else root


@contextmanager
def _kept_as_it_is(modules: Sequence[nn.Module]) -> Iterator[None]:
    training = [(module, module.training) for module in modules]
    bindings = Bindings(modules)
    backup = Backup()
    for module in modules:
        written = [tensor for _, tensor in tensors(module, "_buffers")]
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.max_norm is not None:
            written.append(module.weight)  # forward renormalises its rows
        for tensor in written:
            backup.keep(tensor)
    requires_grad = [
        (tensor, tensor.requires_grad) for module in modules for _, tensor in _own_tensors(module)
    ]
    counted = [tensor for tensor in backup.tensors if not tensor.is_inference()]
    versions = [_unsafe_preserve_version_counter(tensor) for tensor in counted]
    try:
        yield
    finally:
        for module, flag in training:
            if module.training != flag:
                module.training = flag
        bindings.restore()
        for tensor, flag in requires_grad:
            if tensor.requires_grad != flag:
                tensor.requires_grad_(flag)
        backup.restore()
        # A graph that waits for its backward remembers the counters; the values are the same.
        for version in versions:
            version.__exit__(None, None, None)


@contextmanager
def _plain_modes(modules: Sequence[nn.Module]) -> Iterator[None]:
    """No gradients, no inference tensors, full precision, and no recompilation for another mode."""
    kinds = {tensor.device.type for module in modules for _, tensor in _own_tensors(module)} | {"cpu"}
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        for kind in kinds:
            if torch.amp.is_autocast_available(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if "torch._dynamo" in sys.modules and hasattr(torch.compiler, "set_stance"):
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


def _storages(modules: Sequence[nn.Module]) -> set[int]:
    return {_storage_pointer(tensor) for module in modules for _, tensor in _own_tensors(module)} - {0}


def _apart_from(owned: set[int]) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function that copies a tensor where its memory is one of these."""

    def apart(tensor: torch.Tensor) -> torch.Tensor:
        if _storage_pointer(tensor) in owned:
            return tensor.detach().clone()
        return tensor.detach() if tensor.requires_grad else tensor

    return apart


def _storage_pointer(tensor: torch.Tensor) -> int:
    """Where the tensor's memory begins; 0 where it has none of its own."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):
        return 0


def _hint(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    given = [
        f"{key}: {str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
        for value in (list(args), dict(kwargs))
        for key, tensor in named_tensors(value)
        if tensor is not None
    ]
    if len(given) > _NAMED_INPUTS:
        given[_NAMED_INPUTS:] = [f"and {len(given) - _NAMED_INPUTS} more"]
    return f"it was given {', '.join(given) or 'no tensors'}; check them against its forward"
