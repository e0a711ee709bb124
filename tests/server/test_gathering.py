"""What hooks leave on a device comes over in one copy for each stream and step, and no hook waits for it."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Hashable, Sequence
from typing import Any

import pytest
import torch
from torch import nn

from modscope_server.inspection.partial_sums import Part
from modscope_server.inspection.statistics import Reduction, reduce
from modscope_server.runtime.drafts import Draft, DraftValue, event_of
from modscope_server.runtime.gathering import Gatherer, Rows
from tests.server.rpc import until


class Device:
    """Stands in for one: its copies are done when the test says so."""

    def __init__(self) -> None:
        self.current: Hashable = "main stream"
        self.begun: list[tuple[Hashable, list[torch.Tensor]]] = []
        self.done = threading.Event()
        self.fails = False
        self.waiting = 0

    def stream(self, tensor: torch.Tensor) -> Hashable:
        return self.current

    def begin(self, stream: Any, tensors: Sequence[torch.Tensor]) -> _Copy:
        self.begun.append((stream, list(tensors)))
        if self.fails:
            raise torch.OutOfMemoryError("no room")
        return _Copy(self, torch.cat([tensor.reshape(-1) for tensor in tensors]))

    @property
    def sizes(self) -> list[int]:
        return [len(tensors) for _, tensors in self.begun]


class _Copy:
    def __init__(self, device: Device, flat: torch.Tensor) -> None:
        self._device = device
        self._flat = flat

    def wait(self) -> torch.Tensor:
        self._device.waiting += 1
        assert self._device.done.wait(30)
        return self._flat


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def gatherer() -> tuple[Device, Clock, Gatherer]:
    device, clock = Device(), Clock()
    return device, clock, Gatherer(device, clock)


def rows_of(number: int) -> torch.Tensor:
    return torch.arange(20.0).view(2, 10) + number


def test_all_of_a_step_come_in_one_copy_and_each_is_what_it_was() -> None:
    device, _, gathering = gatherer()
    found = [gathering.add(rows_of(number)) for number in range(5)]
    codes = gathering.add(torch.arange(259.0))
    assert not device.begun
    gathering.boundary(1, "optimizer")
    gathering.boundary(1, "mark")
    assert device.sizes == [6]
    device.done.set()
    assert [rows.tolist() for rows in found] == [rows_of(number).tolist() for number in range(5)]
    assert codes.tolist() == torch.arange(259.0).tolist()


def test_a_hook_and_a_boundary_wait_for_no_copy() -> None:
    device, clock, gathering = gatherer()
    for _ in range(3):
        gathering.add(rows_of(0))
        clock.now += 1
    gathering.boundary(1, "optimizer")
    assert device.sizes == [1, 1, 1]
    assert device.waiting == 0


def test_streams_and_dtypes_have_copies_of_their_own() -> None:
    device, _, gathering = gatherer()
    for stream, dtype in [
        ("a", torch.float64),
        ("b", torch.float64),
        ("a", torch.float32),
        ("a", torch.float64),
    ]:
        device.current = stream
        gathering.add(rows_of(0).to(dtype))
    device.current = "another thread's"
    gathering.boundary(1, "optimizer")
    made = [(stream, {tensor.dtype for tensor in tensors}, len(tensors)) for stream, tensors in device.begun]
    assert made == [("a", {torch.float64}, 2), ("b", {torch.float64}, 1), ("a", {torch.float32}, 1)]


def test_many_are_not_kept_waiting_for_a_boundary_that_does_not_come() -> None:
    device, _, gathering = gatherer()
    for _ in range(1025):
        gathering.add(rows_of(0))
    assert device.sizes == [1024]


def test_the_next_hook_begins_the_copy_of_what_is_old() -> None:
    device, clock, gathering = gatherer()
    gathering.add(rows_of(0))
    clock.now = 0.09
    gathering.add(rows_of(0))
    assert not device.begun
    clock.now = 0.1
    gathering.add(rows_of(0))
    assert device.sizes == [2]


def test_a_reader_begins_the_copy_where_no_hook_comes_any_more() -> None:
    device, clock, gathering = gatherer()
    rows = gathering.add(rows_of(3))
    read: list[Any] = []
    clock.now = 5.0
    thread = threading.Thread(target=lambda: read.append(rows.tolist()), daemon=True)
    thread.start()
    until(lambda: device.waiting)
    assert device.begun[0][0] == "main stream"
    device.done.set()
    thread.join(30)
    assert read == [rows_of(3).tolist()]
    gathering.boundary(1, "optimizer")
    assert device.sizes == [1]


def test_a_reader_waits_for_the_boundary_and_then_for_the_copy() -> None:
    device, _, gathering = gatherer()
    rows = gathering.add(rows_of(3))
    batch = rows._batch
    assert batch is not None
    read: list[Any] = []
    # Time stands still: the reader alone would wait for ever.
    gathering.time_left = lambda batch: 30.0  # type: ignore[method-assign]
    thread = threading.Thread(target=lambda: read.append(rows.tolist()), daemon=True)
    thread.start()
    until(lambda: bool(batch._begun._cond._waiters))  # type: ignore[attr-defined]  # threading's own
    assert not device.begun
    gathering.boundary(1, "optimizer")
    until(lambda: device.waiting)
    assert not read
    device.done.set()
    thread.join(30)
    assert read == [rows_of(3).tolist()]


def test_the_thread_that_gathers_does_not_wait_for_itself() -> None:
    device, _, gathering = gatherer()
    device.done.set()
    assert gathering.add(rows_of(1)).tolist() == rows_of(1).tolist()
    assert device.sizes == [1]


def test_elements_are_fetched_once_and_nothing_is_held_after_that() -> None:
    device, _, gathering = gatherer()
    device.done.set()
    tensor = rows_of(0)
    rows = gathering.add(tensor)
    alive = weakref.ref(tensor)
    del tensor
    gathering.boundary(1, "optimizer")
    device.begun.clear()
    assert alive() is None
    batch = weakref.ref(rows._batch)  # type: ignore[arg-type]  # it is there until they are fetched
    assert rows.tolist() is rows.tolist()
    assert device.waiting == 1
    gc.collect()
    assert batch() is None


def test_a_copy_that_fails_is_heard_of_by_readers_alone() -> None:
    device, _, gathering = gatherer()
    device.fails = True
    rows = gathering.add(rows_of(0))
    gathering.boundary(1, "optimizer")
    with pytest.raises(RuntimeError, match="no room"):
        rows.tolist()
    value = DraftValue("output", "", (3,), "float32", Reduction(20, False, rows))
    event = event_of(0, Draft(0, "m", "p", "p", "T", "forward", 0, False, 0.0, (value,)), 0)
    assert event.values[0].stats is None
    assert "no room" in event.values[0].note
    device.fails = False
    device.done.set()
    assert gathering.add(rows_of(0)).tolist()


@pytest.mark.parametrize("histogram", [False, True])
def test_a_reduction_says_the_same_by_way_of_the_gatherer(histogram: bool) -> None:
    device, _, gathering = gatherer()
    device.done.set()
    x = torch.randn(1000, dtype=torch.float64)
    expected = reduce(x, histogram=histogram)
    assert isinstance(expected.parts, tuple)
    parts = gathering.add(torch.tensor([list(part) for part in expected.parts], dtype=torch.float64))
    found = expected._replace(parts=parts)
    assert found.resolve() == expected.resolve()
    assert found.histogram() == expected.histogram()
    assert found.rows() == tuple(map(Part._make, expected.parts))
    assert device.waiting == 1
    assert isinstance(parts, Rows)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_statistics_of_a_step_on_a_gpu_come_in_one_copy() -> None:
    from modscope_server.runtime.captured import Form, captured
    from modscope_server.runtime.cuda_copies import GATHERER

    model = nn.Linear(50, 60).cuda()
    x = torch.randn(20, 50, device="cuda")
    form = Form("histogram", 0)
    for stream in (torch.cuda.current_stream(), torch.cuda.Stream()):  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            outputs = [model(x * factor) for factor in range(1, 5)]
            values = [captured("output", "", output, {form})[form] for output in outputs]
        GATHERER.boundary(1, "optimizer")
        for output, value in zip(outputs, values, strict=True):
            assert value.reduction is not None
            expected = reduce(output.cpu(), histogram=True)
            assert value.reduction.resolve().norm == pytest.approx(expected.resolve().norm)
            counts = value.reduction.histogram()
            assert counts is not None
            assert sum(counts.counts) == output.numel()
