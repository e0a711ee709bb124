"""Carrying changes out: what interrupts or fails in the middle leaves nothing half done."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from modscope_server.inspection import memento
from modscope_server.inspection.changes import Change
from modscope_server.inspection.edits import plan_write
from modscope_server.runtime import operations
from modscope_server.runtime.ledger import Ledger
from modscope_server.runtime.operations import Operations, Options
from modscope_server.runtime.registry import Registered, Registry
from modscope_server.runtime.safepoint import SafePoint


@dataclass
class Bench:
    model: nn.Linear
    registered: Registered
    ledger: Ledger
    operations: Operations

    def write(self, value: float) -> Change:
        return plan_write(self.model, "weight", torch.full((1, 2), value))

    @property
    def listed(self) -> list[tuple[str, str]]:
        return [(one.kind, one.outcome) for one in self.ledger.page("model", 100).entries]


@pytest.fixture
def bench() -> Iterator[Bench]:
    model = nn.Linear(2, 1)
    nn.init.zeros_(model.weight)
    ledger, point = Ledger(100, 1 << 20), SafePoint([model])
    yield Bench(model, Registry({"model": model}).get("model"), ledger, Operations(point, ledger))
    point.close()


def broken(change: Change, error: BaseException) -> Change:
    def apply() -> tuple[str, ...]:
        change.apply()
        raise error

    return Change(change.paths, change.memento, apply)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError(), ValueError("no")], ids=repr)
def test_an_interrupt_in_the_middle_of_a_change_is_rolled_back(bench: Bench, error: BaseException) -> None:
    place = bench.model.weight.data_ptr()
    with pytest.raises(type(error)):
        bench.operations.carry_out(
            "transaction",
            bench.registered,
            [lambda: bench.write(1.0), lambda: broken(bench.write(2.0), error)],
            Options(),
        )
    assert bench.model.weight.tolist() == [[0.0, 0.0]]
    assert bench.model.weight.data_ptr() == place
    assert bench.listed == [("transaction", "failed")]


def test_a_retry_of_a_failed_change_is_carried_out(bench: Bench) -> None:
    options = Options(request_id="a")
    with pytest.raises(ValueError, match="no"):
        bench.operations.carry_out(
            "write", bench.registered, [lambda: broken(bench.write(1.0), ValueError("no"))], options
        )
    entry = bench.operations.carry_out("write", bench.registered, [lambda: bench.write(2.0)], options)
    assert bench.model.weight.tolist() == [[2.0, 2.0]]
    assert bench.listed == [("write", "failed"), ("write", "applied")]
    assert entry.request_id == "a"


def test_what_took_effect_is_not_repeated_where_its_digests_failed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(values: object) -> dict[str, str]:
        raise MemoryError

    options = Options(request_id="a")
    monkeypatch.setattr(operations, "digests", fail)
    with pytest.raises(MemoryError):
        bench.operations.carry_out("write", bench.registered, [lambda: bench.write(1.0)], options)
    entry = bench.operations.carry_out("write", bench.registered, [lambda: bench.write(2.0)], options)
    assert bench.model.weight.tolist() == [[1.0, 1.0]]
    assert bench.listed == [("write", "applied")]
    assert not entry.after


def test_a_retry_that_comes_before_the_digests_are_known_waits_for_them(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    applied, retried = threading.Event(), threading.Event()
    compute = memento.digests

    def compute_late(values: dict[str, torch.Tensor]) -> dict[str, str]:
        applied.set()
        assert not retried.wait(0.2)
        return compute(values)

    def write(ended: threading.Event) -> None:
        plans = [lambda: bench.write(1.0)]
        known.append(
            bench.operations.carry_out("write", bench.registered, plans, Options(request_id="a")).after
        )
        ended.set()

    known: list[Mapping[str, str]] = []
    monkeypatch.setattr(operations, "digests", compute_late)
    first = threading.Thread(target=write, args=(threading.Event(),))
    again = threading.Thread(target=write, args=(retried,))
    first.start()
    assert applied.wait(20)
    again.start()
    first.join(20)
    again.join(20)
    assert [list(after) for after in known] == [["weight"], ["weight"]]


def test_a_plan_that_is_refused_leaves_no_entry(bench: Bench) -> None:
    def refuse() -> Change:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        bench.operations.carry_out(
            "transaction", bench.registered, [lambda: bench.write(1.0), refuse], Options()
        )
    assert bench.model.weight.tolist() == [[0.0, 0.0]]
    assert bench.listed == []
