"""A snapshot taken and put back: every optimizer goes on as it did, and nothing is another object."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from modscope_server.errors import LimitExceeded, NotMaterialized
from modscope_server.inspection.norm_stats import NormHolds, has_running_statistics
from tests.plain_models import Dtypes, Tied, lazy
from tests.server.snapshot_support import Steps, image_of, network, restored, run_of, state_of, train

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9, nesterov=True),
    "AdamW": lambda params: torch.optim.AdamW(params, amsgrad=True),
    "Adam, foreach": lambda params: torch.optim.Adam(params, foreach=True),
    "Adam, fused": lambda params: torch.optim.Adam(params, fused=True),
    "Adam, tensor lr": lambda params: torch.optim.Adam(params, lr=torch.tensor(0.01), foreach=False),
    "Adagrad": lambda params: torch.optim.Adagrad(params, lr_decay=0.1),
    "Adadelta": lambda params: torch.optim.Adadelta(params),
    "Adamax": lambda params: torch.optim.Adamax(params),
    "NAdam": lambda params: torch.optim.NAdam(params),
    "RAdam": lambda params: torch.optim.RAdam(params),
    "RMSprop": lambda params: torch.optim.RMSprop(params, centered=True, momentum=0.1),
    "Rprop": lambda params: torch.optim.Rprop(params),
    "ASGD": lambda params: torch.optim.ASGD(params),
    "LBFGS": lambda params: torch.optim.LBFGS(params, max_iter=3, history_size=4),
    "LBFGS with a line search": lambda params: torch.optim.LBFGS(params, line_search_fn="strong_wolfe"),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("before", [0, 6], ids=["before the first step", "later"])
def test_every_optimizer_goes_on_as_it_did(name: str, before: int) -> None:
    model = network()
    optimizer = OPTIMIZERS[name](model.parameters())
    run = run_of(model, [optimizer])
    train(model, optimizer, before)
    image, then = image_of(run), state_of(run)
    first = train(model, optimizer, 12)
    groups = [id(group) for group in optimizer.param_groups]
    restored(image, run)
    assert state_of(run) == then
    assert groups == [id(group) for group in optimizer.param_groups]
    assert train(model, optimizer, 12) == first


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_restoration_is_undone_bit_for_bit_and_done_again(name: str) -> None:
    model, steps = network(), Steps()
    optimizer = OPTIMIZERS[name](model.parameters())
    scheduler = lr_scheduler.StepLR(optimizer, 3)
    run = run_of(model, [optimizer], steps, scheduler=scheduler)
    train(model, optimizer, 3)
    image, early = image_of(run), state_of(run)
    train(model, optimizer, 5)
    scheduler.step()
    steps.go_to(8)
    late = state_of(run)
    change, _ = restored(image, run)
    assert state_of(run) == early
    change.memento.settle()
    assert change.memento.repeatable
    again = change.memento.again()
    change.memento.restore()
    assert state_of(run) == late
    again.restore()
    assert state_of(run) == early


def test_optimizer_state_stays_in_place_where_it_fits() -> None:
    model = network()
    optimizer = torch.optim.AdamW(model.parameters())
    train(model, optimizer, 2)
    run = run_of(model, [optimizer])
    image = image_of(run)
    train(model, optimizer, 2)
    weight = model[0].weight
    held = [*optimizer.state[weight].values(), weight.grad]
    optimizer.state[weight]["stranger"] = torch.ones(1)
    del optimizer.state[model[0].bias]  # type: ignore[arg-type]
    restored(image, run)
    assert [id(value) for value in [*optimizer.state[weight].values(), weight.grad]] == list(map(id, held))
    assert list(optimizer.state[model[0].bias]) == ["step", "exp_avg", "exp_avg_sq"]


def test_every_dtype_and_flag_comes_back() -> None:
    model = Dtypes()
    run = run_of(model)
    image, then = image_of(run), state_of(run)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.numel():
                raw = tensor.reshape(-1).view(torch.uint8)
                raw.bitwise_xor_(1)
    model.scale.requires_grad_(False)
    model.scale.grad = torch.ones(())
    model.train(not model.training)
    assert state_of(run) != then
    restored(image, run)
    assert state_of(run) == then


def test_what_draws_at_random_goes_on_as_it_did() -> None:
    own, numbers, dice = torch.Generator(), numpy.random.default_rng(3), random.Random(3)
    run = run_of(network(), own=own, numbers=numbers, dice=dice)

    def draw() -> list[float]:
        drawn = [random.random(), random.gauss(0, 1), float(numpy.random.normal()), float(torch.rand(()))]
        return [*drawn, float(torch.rand((), generator=own)), float(numbers.normal()), dice.random()]

    image = image_of(run)
    first = draw()
    restored(image, run)
    assert draw() == first


def test_extras_come_back_and_what_cannot_is_told() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedulers: dict[str, Any] = {
        "lambda_lr": lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.9**epoch),
        "multi": lr_scheduler.MultiStepLR(optimizer, [2, 2, 5]),
        "sequential": lr_scheduler.SequentialLR(
            optimizer, [lr_scheduler.ConstantLR(optimizer), lr_scheduler.ExponentialLR(optimizer, 0.9)], [2]
        ),
        "ema": torch.optim.swa_utils.AveragedModel(model),
    }
    run = run_of(
        model, [optimizer], again=model, and_this=optimizer, nothing=object(), absent=None, **schedulers
    )
    image, then = image_of(run), state_of(run)
    assert image.parts == ("model", "optimizer", "random", *schedulers)
    notes = " ".join(image.notes)
    assert "nothing is left out: a object has no state_dict" in notes
    assert "lambda_lr: 1 functions, which LambdaLR.state_dict leaves out" in notes
    for _ in range(4):
        optimizer.step()
        for name in ("lambda_lr", "multi", "sequential"):
            schedulers[name].step()
    schedulers["ema"].update_parameters(network())
    assert state_of(run) != then
    restored(image, run)
    assert state_of(run) == then


def test_a_function_in_a_state_dict_is_told_and_left_as_it_is() -> None:
    class Odd:
        def __init__(self) -> None:
            self.state: dict[str, Any] = {"count": 1, "act": len, "list": [print, 2]}

        def state_dict(self) -> dict[str, Any]:
            return self.state

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.state = state

    odd = Odd()
    run = run_of(network(), odd=odd)
    image = image_of(run)
    assert [note for note in image.notes if "odd/act" in note]
    odd.state = {"count": 5, "act": max, "list": [min, 7], "new": 1}
    restored(image, run)
    assert odd.state == {"count": 1, "act": max, "list": [min, 2]}


def test_ties_and_views_of_one_memory_are_copied_once() -> None:
    model = Tied()
    size = sum(p.nbytes for p in model.parameters()) + sum(b.nbytes for b in model.buffers())
    random_bytes = torch.get_rng_state().nbytes
    assert image_of(run_of(model)).nbytes == size + random_bytes
    flat = torch.randn(100)
    views: nn.Module = nn.Module()
    views.register_buffer("whole", flat)
    views.register_buffer("part", flat[:50])
    image = image_of(run_of(views))
    assert image.nbytes == flat.nbytes + random_bytes
    expected = flat.clone()
    flat.zero_()
    restored(image, run_of(views))
    assert torch.equal(flat, expected)


def test_sparse_gradients_come_back() -> None:
    model = nn.Embedding(10, 3, sparse=True)
    optimizer = torch.optim.SparseAdam(model.parameters())
    run = run_of(model, [optimizer])
    model(torch.tensor([1, 4, 4])).sum().backward()
    optimizer.step()
    image, then = image_of(run), state_of(run)
    optimizer.zero_grad()
    restored(image, run)
    assert model.weight.grad.is_sparse
    assert state_of(run) == then


def test_parameters_that_no_model_has_are_taken_along_with_their_optimizer() -> None:
    model, loose = network(), nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([{"params": list(model.parameters())}, {"params": [loose]}], lr=0.1)
    run = run_of(model, [optimizer])
    image = image_of(run)
    with torch.no_grad():
        loose.zero_()
    change, _ = restored(image, run)
    assert torch.equal(loose, torch.ones(3))
    change.memento.restore()
    assert torch.equal(loose, torch.zeros(3))


def test_running_statistics_that_were_frozen_since_thaw_and_the_other_way_round() -> None:
    model, holds = network(), NormHolds()
    norm = model[1]
    assert has_running_statistics(norm)
    run = run_of(model, holds=holds)
    free = image_of(run)
    holds.hold(norm, model)
    frozen = image_of(run)
    restored(free, run)
    assert norm not in holds and norm.training
    restored(frozen, run)
    assert norm in holds and not norm.training


def test_what_lbfgs_leaves_out_comes_back() -> None:
    model = network()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=2)
    run = run_of(model, [optimizer])
    everything = image_of(run)
    params = optimizer._params
    optimizer._params = [param for param in params if param is not model[0].weight]
    partly = image_of(run)
    restored(everything, run)
    assert optimizer._params is optimizer.param_groups[0]["params"]
    change, _ = restored(partly, run)
    assert len(optimizer._params) == len(params) - 1
    assert all(param is not model[0].weight for param in optimizer._params)
    change.memento.restore()
    assert optimizer._params is optimizer.param_groups[0]["params"]


def test_several_models_are_one_run() -> None:
    models: dict[str, nn.Module] = {"one": network(), "two": nn.Linear(2, 2)}
    run = run_of(models)
    image, then = image_of(run), state_of(run)
    with torch.no_grad():
        models["two"].weight.zero_()
        models["one"][0].bias.zero_()
    change, _ = restored(image, run, "two")
    assert state_of(run) == then
    assert change.paths[:3] == ("weight", "bias", "one:0.weight")


def test_a_tensor_of_another_model_that_has_another_shape_now_is_an_obstacle_to_an_undo() -> None:
    models: dict[str, Any] = {"first": network(), "second": network()}
    run = run_of(models)
    memento = restored(image_of(run), run, "first")[0].memento
    assert memento.obstacle() == ""
    models["second"][0].bias.data = torch.zeros(7)
    assert memento.obstacle() == "a tensor was float32 [6] and is float32 [7] now"


def test_it_is_refused_before_anything_is_copied_where_it_is_too_large() -> None:
    asked = []

    def refuse(size: int) -> None:
        asked.append(size)
        raise LimitExceeded("too large")

    run = run_of(network())
    with pytest.raises(LimitExceeded):
        image_of(run, refuse)
    assert asked == [image_of(run).nbytes]


def test_what_has_no_elements_is_refused_by_name() -> None:
    with pytest.raises(NotMaterialized) as refusal:
        image_of(run_of(lazy()))
    assert "uninitialized" in refusal.value.message
    meta = nn.Sequential(nn.Linear(2, 2, device="meta"), nn.Linear(2, 2))
    with pytest.raises(NotMaterialized) as refusal:
        image_of(run_of(meta))
    assert "model/0.weight (meta: has no data), model/0.bias" in refusal.value.message
