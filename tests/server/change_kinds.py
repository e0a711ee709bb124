"""One call of each kind of change, on the model of undo_support."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from google.protobuf import struct_pb2

from modscope.v1 import (
    operation_pb2,
    operation_service_pb2,
    optimizer_service_pb2,
    parameter_service_pb2,
    state_dict_service_pb2,
    tensor_pb2,
)
from modscope_server.inspection.tensors import to_data
from tests.server.rpc import Rpc, spec
from tests.server.undo_support import make_model

__all__ = ["CHANGES", "Options", "transaction", "write"]

Options = operation_pb2.ChangeOptions
Change = operation_service_pb2.Change


def write(path: str, value: float) -> parameter_service_pb2.WriteTensorRequest:
    """A request that fills a tensor."""
    return parameter_service_pb2.WriteTensorRequest(path=path, fill=tensor_pb2.Scalar(real=value))


def transaction(
    *changes: operation_service_pb2.Change, options: operation_pb2.ChangeOptions | None = None
) -> Iterator[operation_service_pb2.TransactRequest]:
    """The messages of a transaction whose writes are fills."""
    yield operation_service_pb2.TransactRequest(options=options)
    for change in changes:
        yield operation_service_pb2.TransactRequest(change=change)
    yield operation_service_pb2.TransactRequest(commit=True)


def _write(rpc: Rpc, options: Any) -> Any:
    request = write("first.weight", 0.5)
    request.options.CopyFrom(options)
    return rpc.WriteTensor([request])


def _write_buffer(rpc: Rpc, options: Any) -> Any:
    request = write("norm.running_var", 3.0)
    request.options.CopyFrom(options)
    return rpc.WriteTensor([request])


def _load(rpc: Rpc, options: Any) -> Any:
    state = {key: torch.full_like(value, 2) for key, value in make_model().state_dict().items()}
    entries = [tensor_pb2.TensorHeader(key=key, spec=spec(value)) for key, value in state.items()]

    def messages() -> Iterator[state_dict_service_pb2.UploadRequest]:
        yield state_dict_service_pb2.UploadRequest(entries=entries, options=options)
        for position, value in enumerate(state.values()):
            data = bytes(to_data(value).data)
            yield state_dict_service_pb2.UploadRequest(begins=position, data=data)

    return rpc.Upload(messages())


def _set_optimizer(rpc: Rpc, options: Any) -> Any:
    return rpc.SetOptimizer(hyperparameters={"lr": struct_pb2.Value(number_value=0.5)}, options=options)


def _transact(rpc: Rpc, options: Any) -> Any:
    changes = (
        Change(write=write("first.bias", 1.5)),
        Change(write=write("norm.running_mean", 1.5)),
        Change(freeze=parameter_service_pb2.FreezeRequest(glob="norm", norm_stats=True)),
        Change(unfreeze=parameter_service_pb2.UnfreezeRequest(glob="last.weight")),
        Change(reinitialize=parameter_service_pb2.ReinitializeRequest(glob="first")),
        Change(
            set_optimizer=optimizer_service_pb2.SetOptimizerRequest(
                hyperparameters={"lr": struct_pb2.Value(number_value=0.25)}
            )
        ),
        Change(add_to_optimizer=optimizer_service_pb2.AddToOptimizerRequest(glob="last.bias")),
    )
    return rpc.Transact(transaction(*changes, options=options))


CHANGES: dict[str, Callable[[Rpc, Any], Any]] = {
    "write": _write,
    "write_buffer": _write_buffer,
    "freeze": lambda rpc, options: rpc.Freeze(glob="first", options=options),
    "freeze_norm_stats": lambda rpc, options: rpc.Freeze(glob="norm", norm_stats=True, options=options),
    "unfreeze": lambda rpc, options: rpc.Unfreeze(glob="last.weight", options=options),
    "reinitialize": lambda rpc, options: rpc.Reinitialize(glob="*", options=options),
    "reinitialize_scheme": lambda rpc, options: rpc.Reinitialize(
        glob="*", parameter="weight", scheme="normal_", keep_optimizer_state=True, options=options
    ),
    "load_state_dict": _load,
    "set_optimizer": _set_optimizer,
    "add_to_optimizer": lambda rpc, options: rpc.AddToOptimizer(glob="last.bias", options=options),
    "transaction": _transact,
}
"""Kind of change -> the call that makes it: `last.weight` is frozen before, and none holds `last.bias`."""
