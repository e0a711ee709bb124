"""The rpcs of the contract: name, how a request becomes bytes, how bytes become a response.

A message that carries bulk in its field `data` is handled as a `wire.Frame`, everywhere.
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
    "AT_ONCE",
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
    "STOP_WATCH",
    "UNFREEZE",
    "UPLOAD",
    "WATCH",
    "WRITE_TENSOR",
    "Rpc",
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

    @property
    def path(self) -> str:
        """The path that HTTP/2 knows it by."""
        return f"/{self.service}/{self.name}"


def _plain(service: str, request: type[Q], response: type[R]) -> Rpc[Q, R]:
    return Rpc(service, _name(request), request.SerializeToString, response.FromString)


def _bulk_down(service: str, request: type[Q], response: type[R]) -> Rpc[Q, Frame[R]]:
    return Rpc(service, _name(request), request.SerializeToString, wire.decoder(response.FromString))


def _bulk_up(service: str, request: type[Q], response: type[R]) -> Rpc[Frame[Q], R]:
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

LIST_MODELS = _plain(_MODELS, models.ListModelsRequest, models.ListModelsResponse)
GET_MODEL = _plain(_MODELS, models.GetModelRequest, models.GetModelResponse)
LIST_CHILDREN = _plain(_MODELS, models.ListChildrenRequest, models.ListChildrenResponse)
LIST_MODULES = _plain(_MODELS, models.ListModulesRequest, models.ListModulesResponse)
GET_MODULE = _plain(_MODELS, models.GetModuleRequest, models.GetModuleResponse)
FORWARD = _bulk_both(_MODELS, models.ForwardRequest, models.ForwardResponse)

LIST_PARAMETERS = _plain(_PARAMETERS, parameters.ListParametersRequest, parameters.ListParametersResponse)
LIST_BUFFERS = _plain(_PARAMETERS, parameters.ListBuffersRequest, parameters.ListBuffersResponse)
GET_TENSOR = _plain(_PARAMETERS, parameters.GetTensorRequest, parameters.GetTensorResponse)
READ_TENSOR = Rpc(
    _PARAMETERS, "ReadTensor", parameters.ReadTensorRequest.SerializeToString, _read_tensor_response
)
READ_TENSORS = _bulk_down(_PARAMETERS, parameters.ReadTensorsRequest, parameters.ReadTensorsResponse)
WRITE_TENSOR = _bulk_up(_PARAMETERS, parameters.WriteTensorRequest, parameters.WriteTensorResponse)
FREEZE = _plain(_PARAMETERS, parameters.FreezeRequest, parameters.FreezeResponse)
UNFREEZE = _plain(_PARAMETERS, parameters.UnfreezeRequest, parameters.UnfreezeResponse)
REINITIALIZE = _plain(_PARAMETERS, parameters.ReinitializeRequest, parameters.ReinitializeResponse)

LIST_KEYS = _plain(_STATE_DICTS, state_dicts.ListKeysRequest, state_dicts.ListKeysResponse)
DOWNLOAD = _bulk_down(_STATE_DICTS, state_dicts.DownloadRequest, state_dicts.DownloadResponse)
UPLOAD = _bulk_up(_STATE_DICTS, state_dicts.UploadRequest, state_dicts.UploadResponse)

WATCH = _bulk_down(_HOOKS, hooks.WatchRequest, hooks.WatchResponse)
STOP_WATCH = _plain(_HOOKS, hooks.StopWatchRequest, hooks.StopWatchResponse)
LIST_HOOKS = _plain(_HOOKS, hooks.ListHooksRequest, hooks.ListHooksResponse)

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
"""Those that change nothing and may be sent again where a connection was lost."""

AT_ONCE = frozenset(
    {LIST_MODELS, GET_MODEL, LIST_CHILDREN, LIST_MODULES, GET_MODULE, LIST_KEYS, STOP_WATCH, LIST_HOOKS}
)
"""Those that wait for no step boundary."""
