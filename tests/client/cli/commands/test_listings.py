"""models, ls, tree, modules, params, buffers, state keys: against PyTorch, and letter by letter."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import modscope_server
from tests.client.cli.conftest import Live, Modscope

Golden = Callable[[str, str], None]


@pytest.mark.parametrize(
    "arguments",
    [
        ["models"],
        ["ls"],
        ["ls", "body"],
        ["tree"],
        ["tree", "body"],
        ["tree", "--depth", "1"],
        ["modules"],
        ["modules", "body.*", "--type", "Linear", "-o", "json"],
        ["modules", "-o", "yaml", "--type", "ReLU"],
        ["params"],
        ["params", "--stats"],
        ["params", "scale", "--stats", "-o", "json"],
        ["buffers"],
        ["buffers", "--stats"],
        ["state", "keys"],
    ],
    ids=" ".join,
)
def test_what_is_printed(arguments: list[str], live: Live, modscope: Modscope, golden: Golden) -> None:
    outcome = modscope(*arguments)
    assert (outcome.code, outcome.err) == (0, "")
    golden("_".join(arguments).replace("*", "all").replace("-", ""), outcome.out)


def test_models(live: Live, modscope: Modscope) -> None:
    live.step(3)
    (model,) = modscope("models", "-o", "json").json
    assert model == {
        "name": "model",
        "type": "Reader",
        "training": False,
        "step": 3,
        "modules": len(list(live.model.modules())),
        "parameters": sum(p.numel() for p in live.model.parameters()),
        "trainable_parameters": sum(p.numel() for p in live.model.parameters() if p.requires_grad),
        "optimizers": 1,
        "writable": True,
    }


def test_children_are_those_of_pytorch(live: Live, modscope: Modscope) -> None:
    assert modscope("ls", "-o", "name").lines == [name for name, _ in live.model.named_children()]
    children = modscope("ls", "body", "-o", "json").json
    assert [(child["path"], child["type"]) for child in children] == [
        (f"body.{name}", type(child).__name__) for name, child in live.model.body.named_children()
    ]


def test_a_leaf_has_no_children_and_that_is_no_error(live: Live, modscope: Modscope) -> None:
    outcome = modscope("ls", "head")
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "head has no children\n")
    assert modscope("ls", "head", "-o", "json").out == "[]\n"
    assert modscope("ls", "head", "-o", "jsonl").out == ""
    assert modscope("ls", "head", "-o", "yaml").out == "[]\n"


def test_modules_are_those_of_pytorch(live: Live, modscope: Modscope) -> None:
    expected = [name for name, _ in live.model.named_modules()]
    assert modscope("modules", "-o", "name").out == "".join(f"{name}\n" for name in expected)
    assert [m["path"] for m in modscope("tree", "-o", "json").json] == expected
    assert modscope("modules", "nope", "-o", "json").json == []
    assert modscope("modules", "nope").err == "no module matches\n"


@pytest.mark.parametrize(
    ("options", "wanted"), [([], None), (["--frozen"], False), (["--trainable"], True)], ids=str
)
def test_parameters_are_those_of_pytorch(
    options: list[str], wanted: bool | None, live: Live, modscope: Modscope
) -> None:
    listed = modscope("params", "-o", "json", *options).json
    assert [(p["path"], p["shape"], p["requires_grad"]) for p in listed] == [
        (name, list(p.shape), p.requires_grad)
        for name, p in live.model.named_parameters()
        if wanted is None or p.requires_grad == wanted
    ]


def test_params_by_module_and_type(live: Live, modscope: Modscope) -> None:
    assert modscope("params", "body", "-o", "name").lines == [
        f"body.{name}" for name, _ in live.model.body.named_parameters()
    ]
    assert modscope("params", "--type", "BatchNorm1d", "-o", "name").lines == ["body.2.weight", "body.2.bias"]


def test_frozen_and_trainable_exclude_each_other(live: Live, modscope: Modscope) -> None:
    assert modscope("params", "--frozen", "--trainable").code == 2


def test_a_sick_parameter_stands_out(live: Live, modscope: Modscope) -> None:
    with torch.no_grad():
        live.model.scale[0] = torch.nan
        live.model.scale[1] = torch.inf
    header, scale, *_ = modscope("params", "--stats").lines
    assert scale.split()[header.split().index("NAN")] == "1"
    assert scale.split()[header.split().index("INF")] == "1"
    (record,) = modscope("params", "scale", "--stats", "-o", "json").json
    assert (record["stats"]["nan"], record["stats"]["inf"]) == (1, 1)


def test_buffers_are_those_of_pytorch(live: Live, modscope: Modscope) -> None:
    listed = modscope("buffers", "-o", "json").json
    assert [b["path"] for b in listed] == [name for name, _ in live.model.named_buffers()]
    assert {b["path"]: b["persistent"] for b in listed}["mask"] is False
    assert modscope("buffers", "head", "-o", "json").json == []


def test_state_keys_are_those_of_pytorch(live: Live, modscope: Modscope) -> None:
    listed = modscope("state", "keys", "-o", "json").json
    state = live.model.state_dict()
    assert {k["key"]: (k["dtype"], k["shape"]) for k in listed} == {
        key: (str(tensor.dtype).removeprefix("torch."), list(tensor.shape)) for key, tensor in state.items()
    }


def test_which_of_several_models(modscope: Modscope, monkeypatch: pytest.MonkeyPatch) -> None:
    models = {"generator": nn.Linear(2, 2), "critic": nn.Sequential(nn.Linear(2, 1))}
    with modscope_server.attach(models) as scope:
        monkeypatch.setenv("MODSCOPE_ADDRESS", scope.address)
        monkeypatch.setenv("MODSCOPE_TOKEN", scope.token)
        assert modscope("models", "-o", "name").lines == ["generator", "critic"]
        assert modscope("ls", "--model", "critic", "-o", "name").lines == ["0"]
        outcome = modscope("ls")
        assert outcome.code == 3
        assert "critic" in outcome.err


def test_names_are_escaped_in_tables_and_exact_in_json(
    modscope: Modscope, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = nn.Module()
    odd.add_module("a\nb \x1b[31m", nn.Linear(1, 1))
    with modscope_server.attach(odd) as scope:
        monkeypatch.setenv("MODSCOPE_ADDRESS", scope.address)
        monkeypatch.setenv("MODSCOPE_TOKEN", scope.token)
        for verb in ("ls", "tree", "modules", "params"):
            printed = modscope(verb)
            assert printed.code == 0
            assert "\x1b" not in printed.out
            assert "a\\nb" in printed.out
        assert modscope("ls", "-o", "json").json[0]["path"] == "a\nb \x1b[31m"
