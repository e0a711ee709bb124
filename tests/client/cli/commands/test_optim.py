"""optim, optim set, optim add."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator

import pytest
import torch

import modscope_server
from tests.client.cli.conftest import Live, Modscope
from tests.client.cli.models import reader


@pytest.fixture
def partial(monkeypatch: pytest.MonkeyPatch) -> Iterator[Live]:
    """A model of which the optimizer has forgotten some parameters."""
    model = reader()
    optimizer = torch.optim.SGD([model.embed.weight], lr=0.5, momentum=0.75)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    extras = {"scheduler": scheduler}
    with modscope_server.attach(model, optimizer=optimizer, writable=True, extras=extras) as scope:
        monkeypatch.setenv("MODSCOPE_ADDRESS", scope.address)
        monkeypatch.setenv("MODSCOPE_TOKEN", scope.token)
        yield Live(model, scope, optimizer)


def test_the_groups(live: Live, modscope: Modscope, golden: Callable[[str, str], None]) -> None:
    live.step()
    outcome = modscope("optim")
    golden("optim", outcome.out)
    assert (outcome.code, outcome.err) == (0, "")
    (group,) = modscope("optim", "-o", "json").json
    assert (group["optimizer"], group["lr"], group["options"]["betas"]) == ("Adam", 0.0, [0.9, 0.999])
    assert modscope("-o", "name", "optim").lines == modscope("optim", "-o", "name").lines == ["0"]


def test_what_no_optimizer_holds_and_the_command_for_it(partial: Live, modscope: Modscope) -> None:
    outcome = modscope("optim")
    told, remedy = outcome.err.splitlines()
    assert told.startswith("note: no optimizer holds 5 parameters: scale, body.0.weight")
    assert remedy == "hint: modscope optim add '{scale,body.*}'"
    command = remedy.removeprefix("hint: modscope ")
    done = modscope(*shlex.split(command))
    assert done.lines[0].startswith("gave an optimizer 5 tensors at step 0 ("), done.err
    assert {id(p) for p in partial.optimizer.param_groups[0]["params"]} == set(
        map(id, partial.model.parameters())
    )
    assert modscope("optim").err == ""


def test_a_scheduler_is_shown(partial: Live, modscope: Modscope) -> None:
    header, row = modscope("optim").lines
    assert "BASE LR" in header and "StepLR" in row


def test_hyperparameters_are_json(partial: Live, modscope: Modscope) -> None:
    outcome = modscope("optim", "set", "lr=3e-4", "nesterov=true", "weight_decay=0.125")
    assert outcome.code == 0
    assert outcome.lines[0].startswith("set optimizer at step 0 (")
    (group,) = partial.optimizer.param_groups
    assert (group["lr"], group["nesterov"], group["weight_decay"]) == (3e-4, True, 0.125)
    refused = modscope("optim", "set", "lr=true", "-o", "json")
    assert (refused.code, json.loads(refused.err)["code"]) == (5, "INVALID_ARGUMENT")
    assert modscope("optim", "set", "lr=1", "--group", "7").code == 3
    assert group["lr"] == 3e-4


def test_a_new_base_lr_on_request(partial: Live, modscope: Modscope) -> None:
    (group,) = partial.optimizer.param_groups
    assert modscope("optim", "set", "lr=0.25").code == 0
    assert (group["lr"], group["initial_lr"]) == (0.25, 0.5)
    assert modscope("optim", "set", "lr=0.25", "--base-lr").code == 0
    assert group["initial_lr"] == 0.25


def test_what_is_held_already(partial: Live, modscope: Modscope) -> None:
    outcome = modscope("optim", "add", "embed", "-o", "json")
    assert (outcome.code, json.loads(outcome.err)["reason"]) == (5, "ALREADY_HELD")
    assert modscope("optim", "add", "nope.*").code == 3
