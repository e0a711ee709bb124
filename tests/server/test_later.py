"""Small tensors that are reduced later are told as they were when the hook saw them, each once."""

from __future__ import annotations

import math
import threading
import warnings
from typing import Any

import pytest
import torch

from modscope_server.inspection import row_reduction
from modscope_server.inspection.records import StatsRecord
from modscope_server.inspection.row_reduction import FEW
from modscope_server.inspection.statistics import Later, Reduction, statistics
from modscope_server.runtime import captured, later
from modscope_server.runtime.captured import Form, plain_value_in


def seen(tensor: torch.Tensor) -> Reduction:
    reduction = plain_value_in(Form("stats"), "output", "", tensor).reduction
    assert reduction is not None
    return reduction


def alike(got: StatsRecord, alone: StatsRecord) -> None:
    """float64 rounds in another order where rows are summed together."""
    for name, value, expected in zip(StatsRecord._fields, got, alone, strict=True):
        if expected is None:
            assert value is None, name
        else:
            assert value == pytest.approx(expected, rel=1e-9, abs=1e-12 * (alone.norm or 0.0)), name


def special(row: int, size: int) -> torch.Tensor:
    """Rows of all kinds, one after the other."""
    x = torch.randn(size, generator=torch.Generator().manual_seed(row))
    kinds = (
        x,
        x.relu(),
        x * 1e-2 + 1e4,
        torch.full((size,), 3.0),
        torch.zeros(size),
        x.masked_fill(x > 1, math.nan),
        x.masked_fill(x > 1, -math.inf),
        torch.full((size,), math.nan),
        x * 1e38,
        x * 1e-42,
    )
    return kinds[row % len(kinds)]


@pytest.mark.parametrize("size", [1, 2, 7, 256, FEW])
def test_each_of_many_is_told_as_it_is_told_alone(size: int) -> None:
    tensors = [special(row, size) for row in range(50)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reductions = [seen(tensor) for tensor in tensors]
        for tensor, reduction in zip(tensors, reductions, strict=True):
            alike(reduction.resolve(), statistics(tensor))


def test_sizes_may_come_in_any_order() -> None:
    tensors = [torch.randn(size) for size in (3, 3, 5, 3, FEW, FEW - 1, 1, 3) * 20]
    for tensor, reduction in zip(tensors, [seen(tensor) for tensor in tensors], strict=True):
        alike(reduction.resolve(), statistics(tensor))


def test_what_is_changed_after_the_hook_is_told_as_it_was() -> None:
    tensor = torch.arange(5.0)
    reduction = seen(tensor)
    tensor.fill_(math.nan)
    assert reduction.resolve().max == 4.0


def test_who_asks_early_has_all_reduced_and_the_next_ones_gather_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batches: list[int] = []

    def counting(rows: Any) -> row_reduction.Rows:
        batches.append(len(rows))
        return real(rows)

    real = row_reduction.reduced_rows
    seen(torch.ones(2)).resolve()
    monkeypatch.setattr(later, "reduced_rows", counting)
    tensors = [torch.full((4,), float(row)) for row in range(6)]
    first = [seen(tensor) for tensor in tensors[:4]]
    assert batches == []
    assert first[2].resolve().mean == 2.0
    assert batches == [4]
    rest = [seen(tensor) for tensor in tensors[4:]]
    assert [reduction.resolve().mean for reduction in (*first, *rest)] == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert batches == [4, 2]


def test_a_batch_that_is_full_is_reduced_without_anybody_asking() -> None:
    reductions = [seen(torch.full((FEW,), float(row))) for row in range(40)]
    parts = [reduction.parts for reduction in reductions]
    assert all(isinstance(part, Later) for part in parts)
    settled = [isinstance(part, Later) and part.result is not None for part in parts]
    assert settled[0]
    assert not settled[-1]


def test_a_hook_does_not_wait_for_one_who_reduces(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, goes_on, told = threading.Event(), threading.Event(), threading.Event()
    means: list[float | None] = []

    def slowly(rows: Any) -> Any:
        if len(rows) == 1 and rows[0, 0] == 1.0:
            begun.set()
            assert goes_on.wait(60)
        return row_reduction.reduced_rows(rows)

    def hooks() -> None:
        first = seen(torch.full((2,), 1.0))
        threading.Thread(target=first.resolve, daemon=True).start()
        assert begun.wait(60)
        second = seen(torch.full((2,), 3.0))
        told.set()
        assert goes_on.wait(60)
        means.extend([first.resolve().mean, second.resolve().mean])

    monkeypatch.setattr(later, "reduced_rows", slowly)
    thread = threading.Thread(target=hooks, daemon=True)
    thread.start()
    assert told.wait(20), "the hook has waited"
    goes_on.set()
    thread.join(20)
    assert means == [1.0, 3.0]


@pytest.mark.parametrize("appended", [False, True])
def test_an_interrupt_within_a_hook_leaves_all_others_in_place(appended: bool) -> None:
    class Interrupted(list[Any]):
        def append(self, item: Any) -> None:
            if appended:
                super().append(item)
            raise KeyboardInterrupt

    seen(torch.ones(1)).resolve()
    first = seen(torch.full((3,), 1.0))
    batch = later._GATHERING.batch
    batch._waiting = Interrupted(batch._waiting)
    with pytest.raises(KeyboardInterrupt):
        seen(torch.full((3,), 2.0))
    batch._waiting = list(batch._waiting)
    assert len(batch._waiting) == 1 + appended
    third = seen(torch.full((3,), 3.0))
    assert [first.resolve().mean, third.resolve().mean] == [1.0, 3.0]


def test_hooks_of_several_threads_and_a_reader_beside_them() -> None:
    told: list[tuple[float, Reduction]] = []
    wrong: list[str] = []

    def hooks(first: int) -> None:
        for number in range(first, first + 2000):
            told.append((float(number), seen(torch.full((3,), float(number)))))

    def reader() -> None:
        position = 0
        while position < 8000:
            while position < len(told):
                value, reduction = told[position]
                if reduction.resolve().mean != value:
                    wrong.append(f"{reduction.resolve()} for {value}")
                position += 1

    threads = [threading.Thread(target=hooks, args=(10_000 * n,), daemon=True) for n in range(4)]
    threads.append(threading.Thread(target=reader, daemon=True))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
    assert not any(thread.is_alive() for thread in threads)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(3).double(),
        torch.randn(3).bfloat16(),
        torch.randn(FEW + 1),
        torch.empty(0),
        torch.arange(3),
        torch.randn(3).to_sparse(),
        torch.randn(2, dtype=torch.complex64).conj().imag,
        torch.zeros(3, device="meta"),
    ],
    ids=["double", "bfloat16", "many", "empty", "integers", "sparse", "negative", "meta"],
)
def test_what_is_not_plain_goes_the_common_way(tensor: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captured, "reduced_later", lambda values: pytest.fail("gathered"))
    value = plain_value_in(Form("stats"), "output", "", tensor)
    assert (value.reduction is None) == (tensor.is_sparse or tensor.is_meta)
    assert value.dtype == str(tensor.dtype).removeprefix("torch.")
