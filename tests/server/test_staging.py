"""What is staged is what the model held at one step, in bounded memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from modscope.tensor import CHUNK_BYTES
from modscope_server.errors import LimitExceeded, NotMaterialized
from modscope_server.runtime.from_device import copy_from_cuda
from modscope_server.runtime.safepoint import SafePoint
from modscope_server.runtime.staging import Budget, StagedRead


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(700, 900), nn.BatchNorm1d(900), nn.Linear(900, 3).to(torch.bfloat16))
    model.register_buffer("turned", torch.randn(300, 500).t())
    model.register_buffer("conjugate", torch.randn(5, dtype=torch.complex64).conj())
    model.register_buffer("nothing", torch.empty(0, 3))
    model.register_buffer("scalar", torch.tensor(True))
    return model


@pytest.fixture
def safepoint(model: nn.Module) -> Iterator[SafePoint]:
    point = SafePoint([model], optimizers=1)
    yield point
    point.close()


def staged(safepoint: SafePoint, model: nn.Module, budget: Budget) -> StagedRead:
    return StagedRead(safepoint, lambda: list(model.state_dict().items()), budget)


def collected(read: StagedRead) -> dict[str, torch.Tensor]:
    parts: dict[int, bytearray] = {}
    for chunk in read.chunks():
        assert len(chunk.data) <= CHUNK_BYTES
        assert chunk.begins == (chunk.entry not in parts)
        parts.setdefault(chunk.entry, bytearray()).extend(chunk.data)
    return {
        entry.key: torch.frombuffer(parts[index] or bytearray(1), dtype=torch.uint8)[: entry.size]
        .view(getattr(torch, entry.dtype))
        .view(entry.shape)
        for index, entry in enumerate(read.entries)
    }


def test_staged_tensors_equal_the_state_dict(safepoint: SafePoint, model: nn.Module) -> None:
    budget = Budget(1 << 24)
    read = staged(safepoint, model, budget)
    read.start()
    got, expected = collected(read), model.state_dict()
    assert list(got) == list(expected)
    for key, tensor in expected.items():
        assert got[key].dtype == tensor.dtype
        assert torch.equal(got[key], tensor), key
    assert budget.used > 0
    del got
    read.close()
    read.close()
    assert budget.used == 0


def test_beside_a_running_loop_all_is_of_one_step(safepoint: SafePoint, model: nn.Module) -> None:
    class WritesTheStep(torch.optim.Optimizer):
        number = 0

        @torch.no_grad()
        def step(self, closure: None = None) -> None:  # type: ignore[override]
            WritesTheStep.number += 1
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.fill_(WritesTheStep.number)

    optimizer = WritesTheStep(model[0].parameters(), {})
    stop, began = threading.Event(), threading.Event()

    def loop() -> None:
        while not stop.is_set():
            model[0](torch.randn(4, 700)).sum().backward()
            optimizer.step()
            began.set()

    registered = SafePoint([model[0]], optimizers=1)
    thread = threading.Thread(target=loop)
    thread.start()
    try:
        assert began.wait(20)
        budget = Budget(1 << 24)
        for _ in range(20):
            read = staged(registered, model[0], budget)
            read.start(timeout=20)
            values = torch.cat([tensor.flatten() for tensor in collected(read).values()]).unique()
            read.close()
            assert values.tolist() == [read.step]
    finally:
        stop.set()
        thread.join(20)
        registered.close()
    assert budget.used == 0


def test_no_gradient_is_touched_beside_a_running_loop(model: nn.Module) -> None:
    trained = model[0]
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.01)
    stop, began = threading.Event(), threading.Event()

    def loop() -> None:
        while not stop.is_set():
            trained(torch.randn(4, 700)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            began.set()

    registered = SafePoint([trained], optimizers=1)
    thread = threading.Thread(target=loop)
    thread.start()
    callers = set()

    def gradients() -> list[tuple[str, torch.Tensor]]:
        callers.add(threading.get_ident())
        return [(name, parameter.grad) for name, parameter in trained.named_parameters()]  # type: ignore[misc]

    try:
        assert began.wait(20)
        for _ in range(20):
            read = StagedRead(registered, gradients, Budget(1 << 24))
            read.start(kind="grad", timeout=20, ahead=False)
            assert list(collected(read)) == [name for name, _ in trained.named_parameters()]
            read.close()
        assert callers == {thread.ident}
    finally:
        stop.set()
        thread.join(20)
        registered.close()


def test_more_than_the_budget_is_refused_and_nothing_stays_reserved(
    safepoint: SafePoint, model: nn.Module
) -> None:
    budget = Budget(1000)
    with pytest.raises(LimitExceeded, match=r"1,000 are free"):
        staged(safepoint, model, budget).start()
    assert budget.used == 0


def test_what_cannot_be_read_is_named(safepoint: SafePoint) -> None:
    lazy = nn.LazyLinear(3)
    read = StagedRead(safepoint, lambda: list(lazy.state_dict().items()), Budget(1000))
    with pytest.raises(NotMaterialized, match="weight"):
        read.start()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("elements", [1, 1 << 20, (10 << 20) + 7])
def test_cuda_tensors_come_over_through_pinned_buffers(elements: int) -> None:
    there = torch.randn(elements, device="cuda")
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        there.mul_(2.0)
    target = torch.empty(there.nbytes, dtype=torch.uint8)
    ends = list(copy_from_cuda(target, there))
    assert ends[-1] == there.nbytes
    assert torch.equal(target.view(torch.float32), there.cpu())
    turned = torch.randn(300, 500, device="cuda").t()
    target = torch.empty(turned.nbytes, dtype=torch.uint8)
    list(copy_from_cuda(target, turned))
    assert torch.equal(target.view(torch.float32).view(500, 300), turned.cpu())
