"""What people ask for -> requests of the contract. Pure functions, for both clients alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from modscope import wire
from modscope.paths import literal
from modscope.v1 import model_service_pb2, operation_pb2, parameter_service_pb2
from modscope_client import convert
from modscope_client.convert import request
from modscope_client.errors import InvalidArgument

if TYPE_CHECKING:
    from modscope.tensor import TensorData

__all__ = [
    "forward",
    "freeze",
    "list_buffers",
    "list_modules",
    "list_parameters",
    "options",
    "reinitialize",
    "subtree",
    "type_name",
    "unfreeze",
    "write",
]


def list_modules(
    model: str, glob: str, type: str | type | None, root: str | None, depth: int | None
) -> model_service_pb2.ListModulesRequest:
    """Asks for modules."""
    return request(
        model_service_pb2.ListModulesRequest,
        model=model,
        glob=glob,
        type=type_name(type),
        root=root if depth is None else root or "",
        depth=depth,
    )


def list_parameters(
    model: str, glob: str, type: str | type | None, *, stats: bool, requires_grad: bool | None
) -> parameter_service_pb2.ListParametersRequest:
    """Asks for parameters."""
    return request(
        parameter_service_pb2.ListParametersRequest,
        model=model,
        glob=glob,
        type=type_name(type),
        stats=stats,
        requires_grad=requires_grad,
    )


def list_buffers(
    model: str, glob: str, type: str | type | None, *, stats: bool
) -> parameter_service_pb2.ListBuffersRequest:
    """Asks for buffers."""
    return request(
        parameter_service_pb2.ListBuffersRequest, model=model, glob=glob, type=type_name(type), stats=stats
    )


def options(
    expected: Mapping[str, str] | None, dry_run: bool, request_id: str | None
) -> operation_pb2.ChangeOptions | None:
    """What a change asks for beyond its own arguments; None where that is nothing."""
    if expected is None and not dry_run and request_id is None:
        return None
    return request(operation_pb2.ChangeOptions, expected=expected, dry_run=dry_run, request_id=request_id)


def freeze(
    model: str,
    glob: str,
    type: str | type | None,
    *,
    force: bool,
    norm_stats: bool,
    options: operation_pb2.ChangeOptions | None = None,
) -> parameter_service_pb2.FreezeRequest:
    """Asks to freeze parameters."""
    return request(
        parameter_service_pb2.FreezeRequest,
        model=model,
        glob=glob,
        type=type_name(type),
        force=force,
        norm_stats=norm_stats,
        options=options,
    )


def unfreeze(
    model: str,
    glob: str,
    type: str | type | None,
    *,
    options: operation_pb2.ChangeOptions | None = None,
) -> parameter_service_pb2.UnfreezeRequest:
    """Asks to unfreeze parameters."""
    return request(
        parameter_service_pb2.UnfreezeRequest,
        model=model,
        glob=glob,
        type=type_name(type),
        options=options,
    )


def write(
    model: str,
    path: str,
    array: Any,
    *,
    cast: bool,
    fill: Any,
    allow_non_finite: bool,
    options: operation_pb2.ChangeOptions | None = None,
) -> tuple[parameter_service_pb2.WriteTensorRequest, TensorData | None]:
    """Asks to write one tensor, and what to send after it.

    Numbers in lists take the target's dtype; arrays do so where `cast` is set.
    """
    from modscope_client.arrays import is_tensor_like, tensor_of

    if (array is None) == (fill is None):
        raise InvalidArgument(
            f"write to {path!r}: give either an array or fill=",
            hint="fill sets every element to one number",
            details={"field": "fill"},
        )
    tensor = None if array is None else tensor_of(array)
    first = request(
        parameter_service_pb2.WriteTensorRequest,
        model=model,
        path=path,
        spec=None if tensor is None else wire.spec_of(tensor.dtype, tensor.shape, len(tensor.data)),
        fill=None if fill is None else convert.scalar(fill, "fill"),
        cast=cast or not (tensor is None or is_tensor_like(array)),
        allow_non_finite=allow_non_finite,
        options=options,
    )
    return first, tensor


def reinitialize(
    model: str,
    glob: str,
    type: str | type | None,
    parameter: str | None,
    scheme: str,
    seed: int | None,
    *,
    reset_optimizer: bool,
    arguments: Mapping[str, Any],
    options: operation_pb2.ChangeOptions | None = None,
) -> parameter_service_pb2.ReinitializeRequest:
    """Asks to initialise parameters anew."""
    return request(
        parameter_service_pb2.ReinitializeRequest,
        model=model,
        glob=glob,
        type=type_name(type),
        parameter=parameter,
        scheme=scheme,
        arguments={name: convert.scalar(value, name) for name, value in arguments.items()},
        seed=seed,
        keep_optimizer_state=not reset_optimizer,
        dry_run=None if options is None else options.dry_run,
        options=options,
    )


def forward(
    model: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], mode: str
) -> tuple[model_service_pb2.ForwardRequest, list[TensorData]]:
    """Asks to run the model, and the tensors to send after it."""
    from modscope_client import values

    tensors: list[TensorData] = []
    positional = [values.encode(value, tensors, f"args[{i}]") for i, value in enumerate(args)]
    named = values.encode_mapping(kwargs, tensors, "kwargs")
    first = request(
        model_service_pb2.ForwardRequest,
        model=model,
        args=positional,
        kwargs=named,
        mode=convert.choice(convert.MODES, mode, "mode"),
        tensors=len(tensors),
    )
    return first, tensors


def subtree(path: str) -> str:
    """The glob that matches a module's path and every path below it."""
    return f"{{{literal(path)},{literal(path)}.*}}" if path else "*"


def type_name(kind: str | type | None) -> str | None:
    """A class's name as the contract has it; a class itself is named in full."""
    return f"{kind.__module__}.{kind.__qualname__}" if isinstance(kind, type) else kind
