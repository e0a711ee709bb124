"""The rpcs of the contract: name, how a request becomes bytes, how bytes become a response.

A message that carries bulk in its field `data` is handled as a `wire.Frame`, everywhere. The rpcs that
a listing has no use for are in modules of their own: ledger, optimizers, snapshots, interventions,
run_control.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from google.protobuf.message import Message

from modscope import wire
from modscope.v1 import hook_service_pb2 as hooks
from modscope.v1 import model_service_pb2 as models
from modscope.v1 import parameter_service_pb2 as parameters
from modscope.v1 import state_dict_service_pb2 as state_dicts
from modscope.wire import Frame

__all__ = [
    "DOWNLOAD",
    "FORWARD",
    "FREEZE",
    "GET_MODEL",
    "GET_MODULE",
    "GET_TENSOR",
    "LIST_BUFFERS",
    "LIST_CHILDREN",
    "LIST_HOOKS",
    "LIST_KEYS",
    "LIST_MODELS",
    "LIST_MODULES",
    "LIST_PARAMETERS",
    "READS",
    "READ_TENSOR",
    "READ_TENSORS",
    "REINITIALIZE",
    "RETRIED",
    "STOP_WATCH",
    "UNFREEZE",
    "UPLOAD",
    "WATCH",
    "WRITE_TENSOR",
    "Rpc",
    "bulk_up",
    "plain",
]

Request = TypeVar("Request")
Response = TypeVar("Response")
Q = TypeVar("Q", bound=Message)
R = TypeVar("R", bound=Message)

_SMALL_BYTES = 16_384


@dataclass(frozen=True, eq=False)
class Rpc(Generic[Request, Response]):
    """One rpc."""

    service: str
    """Full name of its service."""
    name: str
    """Its name."""
    encode: Callable[[Request], bytes]
    """A request's wire bytes."""
    decode: Callable[[bytes], Response]
    """The response that wire bytes are."""
    at_once: bool = False
    """Whether it waits for no step boundary."""

    @property
    def path(self) -> str:
        """The path that HTTP/2 knows it by."""
        return f"/{self.service}/{self.name}"


def plain(service: str, request: type[Q], response: type[R], *, at_once: bool = False) -> Rpc[Q, R]:
    """An rpc whose messages carry no bulk."""
    return Rpc(service, _name(request), request.SerializeToString, response.FromString, at_once)


def _bulk_down(service: str, request: type[Q], response: type[R]) -> Rpc[Q, Frame[R]]:
    return Rpc(service, _name(request), request.SerializeToString, wire.decoder(response.FromString))


def bulk_up(service: str, request: type[Q], response: type[R]) -> Rpc[Frame[Q], R]:
    """An rpc whose requests carry bulk."""
    return Rpc(service, _name(request), wire.encode, response.FromString)


def _bulk_both(service: str, request: type[Q], response: type[R]) -> Rpc[Frame[Q], Frame[R]]:
    return Rpc(service, _name(request), wire.encode, wire.decoder(response.FromString))


_decode_frame = wire.decoder(parameters.ReadTensorResponse.FromString)


def _read_tensor_response(data: bytes) -> Frame[parameters.ReadTensorResponse]:
    """A frame; where it is small, protobuf's copy of the bulk takes less than a walk over the fields."""
    if len(data) > _SMALL_BYTES:
        return _decode_frame(data)
    header = parameters.ReadTensorResponse.FromString(data)
    frame = Frame(header, header.data)
    header.ClearField("data")
    return frame


def _name(request: type[Message]) -> str:
    """An rpc's name; the contract names each request after its rpc."""
    return request.DESCRIPTOR.name.removesuffix("Request")


_MODELS = "modscope.v1.ModelService"
_PARAMETERS = "modscope.v1.ParameterService"
_STATE_DICTS = "modscope.v1.StateDictService"
_HOOKS = "modscope.v1.HookService"

LIST_MODELS = plain(_MODELS, models.ListModelsRequest, models.ListModelsResponse, at_once=True)
GET_MODEL = plain(_MODELS, models.GetModelRequest, models.GetModelResponse, at_once=True)
LIST_CHILDREN = plain(_MODELS, models.ListChildrenRequest, models.ListChildrenResponse, at_once=True)
LIST_MODULES = plain(_MODELS, models.ListModulesRequest, models.ListModulesResponse, at_once=True)
GET_MODULE = plain(_MODELS, models.GetModuleRequest, models.GetModuleResponse, at_once=True)
FORWARD = _bulk_both(_MODELS, models.ForwardRequest, models.ForwardResponse)

LIST_PARAMETERS = plain(_PARAMETERS, parameters.ListParametersRequest, parameters.ListParametersResponse)
LIST_BUFFERS = plain(_PARAMETERS, parameters.ListBuffersRequest, parameters.ListBuffersResponse)
GET_TENSOR = plain(_PARAMETERS, parameters.GetTensorRequest, parameters.GetTensorResponse)
READ_TENSOR = Rpc(
    _PARAMETERS, "ReadTensor", parameters.ReadTensorRequest.SerializeToString, _read_tensor_response
)
READ_TENSORS = _bulk_down(_PARAMETERS, parameters.ReadTensorsRequest, parameters.ReadTensorsResponse)
WRITE_TENSOR = bulk_up(_PARAMETERS, parameters.WriteTensorRequest, parameters.WriteTensorResponse)
FREEZE = plain(_PARAMETERS, parameters.FreezeRequest, parameters.FreezeResponse)
UNFREEZE = plain(_PARAMETERS, parameters.UnfreezeRequest, parameters.UnfreezeResponse)
REINITIALIZE = plain(_PARAMETERS, parameters.ReinitializeRequest, parameters.ReinitializeResponse)

LIST_KEYS = plain(_STATE_DICTS, state_dicts.ListKeysRequest, state_dicts.ListKeysResponse, at_once=True)
DOWNLOAD = _bulk_down(_STATE_DICTS, state_dicts.DownloadRequest, state_dicts.DownloadResponse)
UPLOAD = bulk_up(_STATE_DICTS, state_dicts.UploadRequest, state_dicts.UploadResponse)

WATCH = _bulk_down(_HOOKS, hooks.WatchRequest, hooks.WatchResponse)
STOP_WATCH = plain(_HOOKS, hooks.StopWatchRequest, hooks.StopWatchResponse, at_once=True)
LIST_HOOKS = plain(_HOOKS, hooks.ListHooksRequest, hooks.ListHooksResponse, at_once=True)

READS = (
    LIST_MODELS,
    GET_MODEL,
    LIST_CHILDREN,
    LIST_MODULES,
    GET_MODULE,
    LIST_PARAMETERS,
    LIST_BUFFERS,
    GET_TENSOR,
    READ_TENSOR,
    READ_TENSORS,
    LIST_KEYS,
    DOWNLOAD,
    LIST_HOOKS,
)
"""Those that change nothing, as far as a listing imports them."""

RETRIED = (
    *((rpc.service, rpc.name) for rpc in READS),
    ("modscope.v1.OperationService", "ListOperations"),
    ("modscope.v1.OperationService", "GetOperation"),
    ("modscope.v1.OptimizerService", "ListOptimizers"),
    ("modscope.v1.SnapshotService", "ListSnapshots"),
    (_HOOKS, "ListInterventions"),
    ("modscope.v1.RunService", "GetRunStatus"),
    ("modscope.v1.RunService", "ListBreaks"),
    ("modscope.v1.RunService", "WaitForPause"),
)
"""Service and name of all that may be sent again, those included whose messages are imported later."""
