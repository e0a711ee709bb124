"""reinit: against torch.manual_seed and nn.Module.apply."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

from tests.client.cli.conftest import Live, Modscope


def test_seeded_it_is_manual_seed_and_apply(live: Live, modscope: Modscope) -> None:
    twin = copy.deepcopy(live.model)

    def init(module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)

    torch.manual_seed(3)
    twin.apply(init)
    outcome = modscope(
        "reinit", "*", "--type", "Linear", "--param", "weight", "--scheme", "normal_",
        "--arg", "std=0.02", "--seed", "3",
    )  # fmt: skip
    assert outcome.code == 0
    for (name, ours), (_, theirs) in zip(live.model.named_parameters(), twin.named_parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    assert outcome.lines[0].startswith("reinitialised 3 paths at step 0 (")
    assert {line.strip() for line in outcome.lines[1:]} == {"body.0.weight", "embed.weight", "head.weight"}


def test_a_dry_run_changes_nothing(live: Live, modscope: Modscope) -> None:
    before = copy.deepcopy(live.model.state_dict())
    outcome = modscope("reinit", "body.*", "--dry-run")
    assert outcome.code == 0
    assert "dry run, nothing was changed" in outcome.lines[0]
    assert "  body.0.weight" in outcome.lines
    assert modscope("reinit", "body.*", "--dry-run", "-o", "json").json["outcome"] == "dry_run"
    assert all(torch.equal(tensor, before[key]) for key, tensor in live.model.state_dict().items())


def test_own_reset_by_default(live: Live, modscope: Modscope) -> None:
    assert live.model.body[0].weight.abs().max() == 1
    assert modscope("reinit", "body.0").code == 0
    assert live.model.body[0].weight.abs().max() <= 0.5
    assert live.model.body[0].weight.unique().numel() == 16


def test_arguments_are_json_or_text(live: Live, modscope: Modscope) -> None:
    outcome = modscope(
        "reinit", "body.0", "--param", "weight", "--scheme", "kaiming_uniform_",
        "--arg", "nonlinearity=relu", "--arg", "a=0", "--arg", "mode=fan_out", "--seed", "1",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    torch.manual_seed(1)
    twin = nn.init.kaiming_uniform_(torch.empty(4, 4), a=0, mode="fan_out", nonlinearity="relu")
    assert torch.equal(live.model.get_parameter("body.0.weight"), twin)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--scheme", "kaiming_uniform_"], "SCHEME_UNSUITABLE"),
        (["--scheme", "nope_"], "UNKNOWN_SCHEME"),
        (["--scheme", "normal_", "--arg", "sigma=1"], "BAD_REQUEST"),
    ],
)
def test_refused_before_anything_changes(
    arguments: list[str], reason: str, live: Live, modscope: Modscope
) -> None:
    before = copy.deepcopy(live.model.state_dict())
    outcome = modscope("reinit", "body.0", *arguments, "-o", "json")
    assert outcome.code == 5
    assert json.loads(outcome.err)["reason"] == reason
    assert all(torch.equal(tensor, before[key]) for key, tensor in live.model.state_dict().items())


@pytest.mark.parametrize("text", ["std", "=1", "1x=2", "seed=3", "type=Linear"])
def test_what_is_no_argument_of_a_scheme(text: str, live: Live, modscope: Modscope) -> None:
    outcome = modscope("reinit", "*", "--scheme", "normal_", "--arg", text)
    assert outcome.code == 2
    assert "--arg" in outcome.err


def test_an_argument_given_twice_is_refused(live: Live, modscope: Modscope) -> None:
    outcome = modscope("reinit", "*", "--scheme", "normal_", "--arg", "std=1", "--arg", "std=2")
    assert outcome.code == 2 and "'std' is given twice" in outcome.err
