"""What the tests of interventions share: one made over the wire, and how it is told."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from modscope.tensor import chunks
from modscope.v1 import event_pb2, hook_service_pb2, intervention_pb2
from modscope.wire import spec_of
from modscope_server.discovery import boot_id
from modscope_server.inspection.tensors import dtype_name, to_data
from tests.server.rpc import Rpc, serving

__all__ = ["ACTING", "ENDED", "NOT_ACTING", "PRE", "WAITING", "here", "intervened", "intervening", "told"]

PRE = event_pb2.HOOK_KIND_FORWARD_PRE
WAITING = intervention_pb2.INTERVENTION_STATE_WAITING
ACTING = intervention_pb2.INTERVENTION_STATE_ACTING
NOT_ACTING = intervention_pb2.INTERVENTION_STATE_NOT_ACTING
ENDED = intervention_pb2.INTERVENTION_STATE_ENDED


@contextmanager
def here(module: nn.Module, optimizer: Any = None, **options: Any) -> Iterator[Rpc]:
    """Serving, to calls that say that they come from this thread: they are served at once."""
    with serving(module, optimizer, **options) as rpc:
        caller = f"{boot_id()}/{os.getpid()}/{threading.get_native_id()}"
        rpc.metadata.append(("modscope-caller", caller))
        yield rpc


def intervened(rpc: Rpc, glob: str, **asked: Any) -> Any:
    """The intervention that was made, as `intervening` asks for it."""
    return intervening(rpc, glob, **asked).intervention


def intervening(
    rpc: Rpc,
    glob: str,
    *,
    index: str = "",
    tensor: torch.Tensor | None = None,
    lease: float = 0,
    persist: bool = False,
    timeout: float = 30.0,
    **asked: Any,
) -> Any:
    """The answer to one that is made; `tensor` is what `replace=True` or `add_tensor=True` sends."""
    kinds = {name: asked.pop(name) for name in list(asked) if name in _KINDS}
    data = b""
    for name in ("replace", "add_tensor"):
        if kinds.get(name) is True:
            assert tensor is not None
            kinds[name] = spec_of(dtype_name(tensor), tuple(tensor.shape))
            data = bytes(to_data(tensor).data)
    how = intervention_pb2.Alteration(index=index, **kinds)
    spec = intervention_pb2.InterventionSpec(glob=glob, alteration=how, **asked)
    first = hook_service_pb2.InterveneRequest(spec=spec, lease_seconds=lease, persist=persist)
    frames = [first, *(hook_service_pb2.InterveneRequest(data=bytes(part)) for part in chunks(data))]
    return rpc.Intervene(frames, timeout=timeout)


_KINDS = ("scale", "add", "add_tensor", "clamp", "zero", "replace", "noise")


def told(rpc: Rpc, made: Any) -> Any:
    """The same intervention as it is now."""
    (found,) = rpc.ListInterventions(ids=[made.id]).interventions
    return found
