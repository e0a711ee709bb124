"""Copies have the elements of the tensor, and their memory is used again once nobody can see it any more."""

from __future__ import annotations

import gc
import threading
from collections import deque

import numpy
import pytest
import torch
from torch import nn

from modscope.tensor import TensorData
from modscope_server.inspection.tensors import from_data
from modscope_server.runtime.copy_memory import COPY_MEMORY, CopyMemory
from modscope_server.runtime.hooks import HookManager
from modscope_server.runtime.registry import Registry
from modscope_server.runtime.watch_spec import WatchSpec
from tests.server.rpc import until

LARGE = 1 << 19


def watched() -> CopyMemory:
    memory = CopyMemory()
    memory.count(1)
    return memory


def place_of(data: TensorData) -> int:
    return int(numpy.frombuffer(data.data, numpy.uint8).ctypes.data)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool, torch.complex64, torch.int64])
@pytest.mark.parametrize("shape", [(LARGE, 2), (3, 2), (2, LARGE), (300, 400), (), (0, 3)])
def test_a_copy_has_the_elements_row_by_row(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    memory = watched()
    original = torch.randn(shape).to(dtype)
    transposed = original.T if original.ndim == 2 else original
    for tensor in (original, transposed, original[1:] if shape else original):
        copy, expected = memory.copied(tensor), tensor.clone()
        assert (copy.dtype, copy.shape) == (str(dtype).removeprefix("torch."), tuple(expected.shape))
        assert torch.equal(from_data(copy), expected)
        tensor.zero_()
        assert torch.equal(from_data(copy), expected)


def test_the_view_of_a_conjugate_is_copied_as_its_elements_are() -> None:
    for size in (3, LARGE):
        tensor = torch.randn(size, dtype=torch.complex64).conj()
        assert torch.equal(from_data(watched().copied(tensor)), tensor)


@pytest.mark.parametrize("size", [1, 100_000, LARGE])
def test_no_tensor_of_torch_stays_with_a_copy(size: int) -> None:
    copy = watched().copied(torch.randn(size))
    assert copy.nbytes == 4 * size
    held: list[object] = [copy.data]
    for one in held:
        held += [other for other in gc.get_referents(one) if not isinstance(other, type)]
        base = one.base if isinstance(one, numpy.ndarray) else None
        held += [] if base is None else [base]
        assert not isinstance(one, torch.Tensor)
        assert len(held) < 20


def test_memory_is_used_again_once_the_last_view_is_gone() -> None:
    memory = watched()
    source = torch.randn(LARGE)
    copy = memory.copied(source)
    place = place_of(copy)
    view = memoryview(copy.data)[100:200]
    expected = bytes(view)
    del copy
    other = memory.copied(torch.zeros(LARGE))
    assert place_of(other) != place
    assert bytes(view) == expected
    del view
    assert memory.free == source.nbytes
    assert place_of(memory.copied(source)) == place


def test_memory_of_sizes_that_nobody_asks_for_gives_way() -> None:
    memory = watched()
    for size in (100, 120, 140):
        copies = [memory.copied(torch.empty(size << 18)) for _ in range(1)]
        del copies
    assert memory.free <= 256 << 20
    assert from_data(memory.copied(torch.ones(140 << 18))).sum() == 140 << 18


def test_free_memory_adds_little_to_the_most_that_was_in_use() -> None:
    memory = watched()
    held: deque[TensorData] = deque()
    most = 0
    for step in range(160):
        # As in a full queue: of different sizes, and the oldest goes as another one comes.
        held.append(memory.copied(torch.empty((step * 7 % 16 + 1) << 18)))
        in_use = sum(copy.nbytes for copy in held)
        most = max(most, in_use)
        assert in_use + memory.free <= most + (8 << 20) + (16 << 20), "what is spare, and the largest of all"
        if len(held) == 6:
            held.popleft()


def test_memory_is_kept_for_a_while_after_the_last_watch_and_then_no_more() -> None:
    memory = CopyMemory(keep=0.01)
    source = torch.randn(LARGE)
    memory.count(1)
    memory.count(1)
    del (copies := [memory.copied(source)])[:]
    memory.count(-1)
    assert memory.free == source.nbytes
    memory.count(-1)
    until(lambda: not memory.free)
    copies += [memory.copied(source)]
    copies.clear()
    assert not memory.free


def test_a_new_watch_finds_what_the_last_one_has_left() -> None:
    memory = CopyMemory(keep=3600)
    source = torch.randn(LARGE)
    memory.count(1)
    place = place_of(memory.copied(source))
    memory.count(-1)
    memory.count(1)
    assert memory._timer is None
    assert place_of(memory.copied(source)) == place


def test_watches_of_tensors_use_it() -> None:
    model = nn.Identity()
    x = torch.randn(LARGE)
    manager = HookManager(watches=8, events=100, size=1 << 30)
    watch = manager.watch(Registry({"model": model}).get(), WatchSpec(payload="tensor"))
    before = COPY_MEMORY.free
    model(x)
    events = watch.subscription.drain(0)
    tensor = events[0].values[0].tensor
    assert tensor is not None
    assert bytes(tensor.data) == x.numpy().tobytes()
    del events, tensor
    assert COPY_MEMORY.free >= max(before, x.nbytes)
    manager.stop_all("closed")


def test_blocks_come_back_from_any_thread() -> None:
    memory = watched()
    source = torch.randn(LARGE)

    def work() -> None:
        for _ in range(50):
            copy = memory.copied(source)
            assert torch.equal(from_data(copy), source)
            del copy

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert 0 < memory.free <= 4 * source.nbytes
