"""A snapshot of a run that is built differently now is refused, with all that differs at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from modscope_server.inspection.snapshot import Run
from tests.server.snapshot_support import image_of, mismatch, network, run_of, train


def build(**changes: Any) -> Run:
    """A run that is trained a little; `changes` make it another one."""
    model = changes.get("model", network)()
    make = changes.get("optimizer", lambda params: torch.optim.AdamW(params, lr=0.01))
    optimizer = make(list(model.parameters()))
    if "forget" not in changes:
        train(model, optimizer, 2)
    optimizers = [] if changes.get("none") else [optimizer]
    return run_of({changes.get("name", "model"): model}, optimizers, **changes.get("extras", {}))


def wider() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 7), nn.BatchNorm1d(7), nn.Dropout(0.2), nn.Linear(7, 1))


def deeper() -> nn.Module:
    model = network()
    model.append(nn.Tanh())
    model.register_buffer("more", torch.zeros(1), persistent=False)
    return model


def scheduler() -> Any:
    return lr_scheduler.StepLR(torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1), 2)


def grouped(params: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW([{"params": params[:2]}, {"params": params[2:]}], lr=0.01)


DIFFERENCES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "sizes": (
        {"model": wider},
        [
            "0.weight was float32 [6, 4] and is float32 [7, 4]",
            "3.weight was float32 [1, 6]",
            "1.running_mean",
        ],
    ),
    "dtype": (
        {"model": lambda: network().double(), "forget": True},
        ["0.bias was float32 [6] and is float64 [6]"],
    ),
    "modules and buffers": (
        {"model": deeper},
        ["modules that it does not have: '4'", "tensors that it does not have: 'more'"],
    ),
    "name": ({"name": "net"}, ["models that are not here now: 'model'", "that it does not have: 'net'"]),
    "no optimizer": ({"none": True}, ["it has 1 optimizers (AdamW), and 0 are known now"]),
    "kind of optimizer": (
        {"optimizer": lambda params: torch.optim.SGD(params, lr=0.1)},
        ["optimizer 0 was AdamW and is SGD"],
    ),
    "groups": ({"optimizer": grouped}, ["it had 1 parameter groups and has 2"]),
    "parameters of a group": (
        {"optimizer": lambda params: torch.optim.AdamW(params[1:])},
        ["group 0: parameters that are not here now: 'model:0.weight'"],
    ),
    "order of a group": (
        {"optimizer": lambda params: torch.optim.AdamW(params[::-1])},
        ["group 0 holds its parameters in another order"],
    ),
}


@pytest.mark.parametrize("what", DIFFERENCES)
def test_what_differs_is_named_and_nothing_changes(what: str) -> None:
    changes, told = DIFFERENCES[what]
    said = mismatch(image_of(build()), build(**changes))
    assert all(text in said for text in told), said


def test_all_differences_are_told_at_once() -> None:
    other = build(model=wider, optimizer=grouped)
    said = mismatch(image_of(build(extras={"scheduler": scheduler()})), other)
    for text in ("0.weight was", "1 parameter groups and has 2", "no scheduler among its extras"):
        assert text in said, said


def test_an_extra_of_another_kind() -> None:
    other = torch.amp.GradScaler("cpu")
    said = mismatch(image_of(build(extras={"part": scheduler()})), build(extras={"part": other}))
    assert "part was a StepLR and is a GradScaler" in said


def test_a_tie_that_came_since() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    image = image_of(run_of(model))
    model[1].weight = model[0].weight
    assert "1.weight and 0.weight are one tensor now, and were two" in mismatch(image, run_of(model))


def test_a_tie_that_went_since_is_no_difference() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    image = image_of(run_of(tied))
    with pytest.raises(AssertionError, match="not refused"):
        mismatch(image, run_of(model))
    assert torch.equal(model.get_parameter("1.weight"), tied.get_parameter("0.weight"))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda run: run.pop("random"),
        lambda run: run["models"]["model"]["tensors"]["0.weight"].update(value=10**6),
        lambda run: run["optimizers"][0]["state"][0].update(value={"is": "surprise"}),
        lambda run: run["optimizers"][0]["groups"][0].update(params=[77]),
        lambda run: run["models"].update(model=None),
    ],
)
def test_a_snapshot_that_makes_no_sense_is_refused(spoil: Callable[[Any], Any]) -> None:
    run = build()
    image = image_of(run)
    spoil(image.run)
    assert "the snapshot is damaged" in mismatch(image, run)
