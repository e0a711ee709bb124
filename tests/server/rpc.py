"""The server as any gRPC client sees it: calls by name with the generated classes, no client library."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import torch
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.rpc import error_details_pb2, status_pb2
from torch import nn

import modscope_server
from modscope.tensor import CHUNK_BYTES, TensorData, chunks
from modscope.v1 import (
    hook_service_pb2,
    lease_service_pb2,
    model_service_pb2,
    operation_service_pb2,
    optimizer_service_pb2,
    parameter_service_pb2,
    run_service_pb2,
    snapshot_service_pb2,
    state_dict_service_pb2,
    tensor_pb2,
)
from modscope.wire import spec_of
from modscope_server.inspection.tensors import to_data

__all__ = [
    "METHODS",
    "Refused",
    "Rpc",
    "admitted",
    "joined",
    "refused",
    "serving",
    "shape_of",
    "spec",
    "training_loop",
    "until",
    "uploaded",
]

METHODS: dict[str, MethodDescriptor] = {
    method.name: method
    for file, name in (
        (model_service_pb2, "ModelService"),
        (parameter_service_pb2, "ParameterService"),
        (state_dict_service_pb2, "StateDictService"),
        (hook_service_pb2, "HookService"),
        (run_service_pb2, "RunService"),
        (lease_service_pb2, "LeaseService"),
        (operation_service_pb2, "OperationService"),
        (optimizer_service_pb2, "OptimizerService"),
        (snapshot_service_pb2, "SnapshotService"),
    )
    for method in file.DESCRIPTOR.services_by_name[name].methods
}
"""All methods of modscope.v1 by name."""

TIMEOUT = 30.0


class Rpc:
    """Calls methods by name: `rpc.GetModel(model="m")`; a streamed request is an iterable of messages."""

    def __init__(self, address: str, token: str | None, channel: grpc.Channel | None = None) -> None:
        self.channel = channel or grpc.insecure_channel(
            address,
            options=[("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", 8 << 20)],
        )
        self.metadata: list[tuple[str, str]] = [] if token is None else [("authorization", f"Bearer {token}")]

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = METHODS[name]
        request_class: Any = message_factory.GetMessageClass(method.input_type)
        response_class: Any = message_factory.GetMessageClass(method.output_type)
        call: Any = getattr(self.channel, shape_of(method))(
            f"/{method.containing_service.full_name}/{name}",
            request_serializer=request_class.SerializeToString,
            response_deserializer=response_class.FromString,
        )

        def invoke(requests: Iterable[Any] | None = None, *, timeout: float = TIMEOUT, **fields: Any) -> Any:
            request = iter(requests) if requests is not None else request_class(**fields)
            return call(request, timeout=timeout, metadata=self.metadata)

        return invoke

    def close(self) -> None:
        self.channel.close()

    def __enter__(self) -> Rpc:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


@contextmanager
def serving(module: nn.Module | dict[str, nn.Module], optimizer: Any = None, **options: Any) -> Iterator[Rpc]:
    """Attach, writable unless told otherwise, and call with the operator token."""
    with (
        modscope_server.attach(module, optimizer, **{"writable": True, **options}) as scope,
        Rpc(scope.address, scope.token) as rpc,
    ):
        yield rpc


def shape_of(method: MethodDescriptor) -> str:
    """Name of the channel's method for calls of this shape, such as "unary_stream"."""
    words = ("unary", "stream")
    return f"{words[method.client_streaming]}_{words[method.server_streaming]}"


def until(holds: Callable[[], Any]) -> None:
    """Wait for a condition that another thread brings about."""
    for _ in range(600):
        if holds():
            return
        threading.Event().wait(0.05)
    raise AssertionError("the condition never held")


def admitted(call: Callable[[], Any]) -> bool:
    """Whether a call is served; False where the limits refuse it for now."""
    try:
        call()
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
            return False
        raise
    return True


class Refused(Exception):
    """What the server said no with."""

    def __init__(self, error: Any) -> None:
        super().__init__(error.details())
        trailers = dict(error.trailing_metadata() or ())
        status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
        info = error_details_pb2.ErrorInfo()
        assert status.details[0].Unpack(info)
        assert status.message.startswith(error.details()[:100])
        self.code: str = error.code().name
        self.message = status.message
        self.reason = info.reason
        self.domain = info.domain
        self.hint = info.metadata["hint"]
        self.fields = []
        for detail in status.details[1:]:
            bad = error_details_pb2.BadRequest()
            assert detail.Unpack(bad)
            self.fields += [violation.field for violation in bad.field_violations]


def refused(call: Callable[[], Any]) -> Refused:
    """The refusal that a call ends with; a stream is read to its end."""
    try:
        result = call()
        if isinstance(result, Iterator):
            result = list(result)
    except grpc.RpcError as error:
        return Refused(error)
    raise AssertionError(f"the call was not refused: {result}")


def spec(tensor: torch.Tensor) -> tensor_pb2.TensorSpec:
    """What a tensor is on the wire."""
    data = to_data(tensor)
    return spec_of(data.dtype, data.shape, len(data.data))


def joined(messages: Iterable[Any], announced: Callable[[Any], Any]) -> list[TensorData]:
    """The tensors of a bulk stream; `announced` gives the spec that a message announces, or None."""
    found: list[tuple[Any, bytearray]] = []
    for message in messages:
        assert len(message.data) <= CHUNK_BYTES
        now = announced(message)
        if now is not None:
            found.append((now, bytearray()))
        if message.data:
            found[-1][1].extend(message.data)
    return [TensorData(now.dtype_name, tuple(now.shape), bytes(data)) for now, data in found]


def uploaded(first: Any, tensor: torch.Tensor) -> Iterator[Any]:
    """A write's messages: the first, then the tensor's bytes."""
    yield first
    for chunk in chunks(to_data(tensor).data):
        yield type(first)(data=bytes(chunk))


@contextmanager
def training_loop(step: Callable[[], None]) -> Iterator[threading.Thread]:
    """Runs `step` again and again on a thread of its own; an error in it fails the test."""
    errors: list[BaseException] = []
    stop = threading.Event()

    def loop() -> None:
        try:
            while not stop.is_set():
                step()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=loop, name="training", daemon=True)
    thread.start()
    try:
        yield thread
    finally:
        stop.set()
        thread.join(TIMEOUT)
        if errors:
            raise errors[0]
