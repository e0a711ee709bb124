"""Listings do not have malloc give back what a training step is about to use again."""

from __future__ import annotations

import ctypes
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import modscope_server
from modscope.v1 import hook_service_pb2
from tests.server.rpc import Rpc

MANY = 1024
"""Tensors of the model: a message of each of them, made by Python, takes two arenas or more."""
TURNS = 12
"""So many listings of them let go of more than 10,000 arenas, were each message one."""
BLOCK, BLOCKS = 64 << 10, 1024


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def given_back(work: Callable[[], object]) -> int:
    """How many of 60 MiB that malloc has free, and has kept so far, some work gives back to the system."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc.argtypes, libc.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
    blocks = [libc.malloc(BLOCK) for _ in range(BLOCKS)]
    for block in blocks:
        ctypes.memset(block, 1, BLOCK)
    # Those that stay keep the rest off the end of the heap, which malloc gives back by itself.
    stay, go = blocks[15::16], [block for i, block in enumerate(blocks) if i % 16 != 15]
    try:
        for block in go:
            libc.free(block)
        before = resident()
        work()
        return before - resident()
    finally:
        for block in stay:
            libc.free(block)


def one_by_one() -> None:
    """What is not to be done."""
    for _ in range(30):
        hook_service_pb2.ListHooksResponse(hooks=[hook_service_pb2.HookInfo(path="p") for _ in range(MANY)])


class Many(nn.Module):
    """Parameters and buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.parameter_list = nn.ParameterList(torch.zeros(1) for _ in range(MANY))
        for number in range(MANY):
            self.register_buffer(f"b{number}", torch.zeros(1))
        self.layers = nn.ModuleList(nn.Identity() for _ in range(MANY))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


LISTINGS: dict[str, Callable[[Rpc], Any]] = {
    "children": lambda rpc: rpc.ListChildren(path="layers"),
    "modules": lambda rpc: [*rpc.ListModules()],
    "parameters": lambda rpc: [*rpc.ListParameters(stats=True)],
    "buffers": lambda rpc: [*rpc.ListBuffers()],
    "state_dict keys": lambda rpc: [*rpc.ListKeys()],
    "hooks": lambda rpc: rpc.ListHooks(),
}


@pytest.fixture(scope="module")
def scope() -> Iterator[modscope_server.Scope]:
    """A model that is watched."""
    with modscope_server.attach(Many().eval()) as scope, Rpc(scope.address, scope.token) as rpc:
        stream = rpc.Watch()
        next(stream)
        yield scope
        stream.cancel()


def leaves_memory_alone(scope: modscope_server.Scope, ask: Callable[[Rpc], Any]) -> bool:
    """Whether many of these calls leave free memory with malloc."""
    if sys.platform != "linux" or given_back(one_by_one) < BLOCK * BLOCKS // 2:
        pytest.skip("this malloc, or this protobuf, gives nothing back")
    with Rpc(scope.address, scope.token) as rpc:
        assert ask(rpc)

        def poll() -> None:
            for _ in range(TURNS):
                ask(rpc)

        return given_back(poll) < BLOCK * BLOCKS // 4


@pytest.mark.parametrize("listing", LISTINGS)
def test_no_listing_gives_free_memory_back(scope: modscope_server.Scope, listing: str) -> None:
    assert leaves_memory_alone(scope, LISTINGS[listing])


def test_no_status_gives_free_memory_back(scope: modscope_server.Scope) -> None:
    for step in range(MANY):
        scope.step(loss=float(step))
    assert leaves_memory_alone(scope, lambda rpc: rpc.GetRunStatus(history=MANY))
