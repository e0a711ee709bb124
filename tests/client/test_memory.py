"""Memory in bulk: used again when its arrays are gone, never before, and never kept for long."""

from __future__ import annotations

import gc
import threading
from typing import Any

import numpy
import pytest
import torch

from modscope_client import memory
from modscope_client.memory import Memory
from tests.end_to_end.serving import until


def addresses(blocks: list[Any]) -> list[int]:
    return [block.ctypes.data for block in blocks]


def test_blocks_are_used_again_when_their_arrays_are_gone() -> None:
    pool = Memory()
    blocks = pool.take([1 << 20, 2 << 20])
    first = addresses(blocks)
    del blocks
    assert addresses(pool.take([2 << 20, 1 << 20])) == first[::-1]


@pytest.mark.parametrize(
    "keep",
    [
        lambda block: block[5:9],
        lambda block: block[:80].view(numpy.float64).reshape(2, 5).T,
        lambda block: memoryview(block[1:]),
        lambda block: torch.from_numpy(block[:8].view(numpy.float32)),
    ],
)
def test_and_not_while_anything_of_them_is_left(keep: Any) -> None:
    pool = Memory()
    (block,) = pool.take([1 << 20])
    block[:] = 7
    (held,) = addresses([block])
    kept = keep(block)
    del block
    gc.collect()
    (other,) = pool.take([1 << 20])
    other[:] = 9
    assert addresses([other]) != [held]
    untouched = kept.numpy() if isinstance(kept, torch.Tensor) else numpy.asarray(kept)
    assert set(untouched.tobytes()) == {7}, "what is still held is as it was"
    del kept, untouched
    gc.collect()
    assert held in addresses(pool.take([1 << 20]))


def test_blocks_of_other_sizes_are_let_go() -> None:
    pool = Memory()
    blocks = pool.take([1000, 2000])
    del blocks
    blocks = pool.take([3000])
    del blocks
    assert pool.free == 3000, "the two of before are gone, the last one is kept"


def test_and_no_more_of_them_than_is_needed() -> None:
    pool = Memory()
    blocks = pool.take([1000, 1000, 1000, 2000])
    del blocks
    blocks = pool.take([1500])
    del blocks
    assert pool.free == 5000 - 2000 + 1500, "one of 2000 has made way, or two of 1000"


def test_no_more_is_kept_than_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_MOST_KEPT", 2500)
    pool = Memory()
    blocks = pool.take([1000, 1000, 1000])
    del blocks
    assert pool.free == 2000


def test_what_nobody_uses_goes_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_KEEP_SECONDS", 0.01)
    pool = Memory()
    for _ in range(2):
        blocks = pool.take([1 << 20, 2 << 20])
        del blocks
        until(lambda: not pool.free, "the blocks that came back are let go")
    held = pool.take([1 << 20])
    assert len(held) == 1, "a pool that was tidied lends as before"


def tidying() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "modscope-memory"]


@pytest.mark.parametrize("end", [Memory.close, lambda pool: None])
def test_no_thread_is_left_of_one_that_is_closed_or_forgotten(end: Any) -> None:
    gc.collect()
    until(lambda: not tidying(), "the threads of other tests are gone")
    pool = Memory()
    blocks = pool.take([1000])
    del blocks
    assert len(tidying()) == 1
    end(pool)
    del pool
    gc.collect()
    until(lambda: not tidying(), "its thread has ended")


def test_a_closed_one_keeps_nothing() -> None:
    pool = Memory()
    before, after = pool.take([1000, 2000])
    del before
    pool.close()
    assert not pool.free
    del after
    assert not pool.free


def test_blocks_can_be_written_and_empty_ones_made() -> None:
    (block, nothing) = Memory().take([4, 0])
    block[:] = range(4)
    assert block.tolist() == [0, 1, 2, 3] and nothing.nbytes == 0
