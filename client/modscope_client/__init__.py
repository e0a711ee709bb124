"""The client of modscope: see inside a live PyTorch model and change it, from anywhere, without torch.

    from modscope_client import connect

    with connect() as client:
        print(client.model())

Each name is imported when it is first used, so that `import modscope_client` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modscope_client import aio, errors, types
    from modscope_client.client import Client, connect
    from modscope_client.discovery import servers
    from modscope_client.errors import (
        DeadlineExceeded,
        FailedPrecondition,
        Internal,
        InvalidArgument,
        ModscopeError,
        NoSuchFile,
        NotFound,
        PermissionDenied,
        ResourceExhausted,
        Unauthenticated,
        Unavailable,
    )
    from modscope_client.handles import RemoteModel, RemoteModule, RemoteParameter
    from modscope_client.model_interventions import InterventionHandle
    from modscope_client.run import Run
    from modscope_client.subscription import Subscription
    from modscope_client.transaction import Transaction
    from modscope_client.types import (
        Break,
        BufferInfo,
        Event,
        Histogram,
        HookInfo,
        Intervention,
        Lease,
        LoadResult,
        Metric,
        MetricPoint,
        ModelInfo,
        ModuleInfo,
        Opaque,
        Operation,
        OperationList,
        OptimizerGroup,
        OptimizerList,
        ParameterInfo,
        Pause,
        RunStatus,
        Sample,
        ServerInfo,
        Snapshot,
        StateDictKeys,
        Stats,
        TensorData,
        TensorDetail,
        TensorSpec,
        ValueInfo,
        WatchCounters,
    )

__all__ = [
    "Break",
    "BufferInfo",
    "Client",
    "DeadlineExceeded",
    "Event",
    "FailedPrecondition",
    "Histogram",
    "HookInfo",
    "Internal",
    "Intervention",
    "InterventionHandle",
    "InvalidArgument",
    "Lease",
    "LoadResult",
    "Metric",
    "MetricPoint",
    "ModelInfo",
    "ModscopeError",
    "ModuleInfo",
    "NoSuchFile",
    "NotFound",
    "Opaque",
    "Operation",
    "OperationList",
    "OptimizerGroup",
    "OptimizerList",
    "ParameterInfo",
    "Pause",
    "PermissionDenied",
    "RemoteModel",
    "RemoteModule",
    "RemoteParameter",
    "ResourceExhausted",
    "Run",
    "RunStatus",
    "Sample",
    "ServerInfo",
    "Snapshot",
    "StateDictKeys",
    "Stats",
    "Subscription",
    "TensorData",
    "TensorDetail",
    "TensorSpec",
    "Transaction",
    "Unauthenticated",
    "Unavailable",
    "ValueInfo",
    "WatchCounters",
    "aio",
    "connect",
    "errors",
    "servers",
    "types",
]

_MODULES = ("aio", "errors", "types")
_ERRORS = (
    "DeadlineExceeded",
    "FailedPrecondition",
    "Internal",
    "InvalidArgument",
    "ModscopeError",
    "NoSuchFile",
    "NotFound",
    "PermissionDenied",
    "ResourceExhausted",
    "Unauthenticated",
    "Unavailable",
)
_HOMES = {
    "Client": "client",
    "connect": "client",
    "servers": "discovery",
    "RemoteModel": "handles",
    "RemoteModule": "handles",
    "RemoteParameter": "handles",
    "InterventionHandle": "model_interventions",
    "Run": "run",
    "Subscription": "subscription",
    "Transaction": "transaction",
    **dict.fromkeys(_ERRORS, "errors"),
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    module = importlib.import_module(f"{__name__}.{_HOMES.get(name, 'types')}")
    value = globals()[name] = getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
