"""forward: the model run on files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import modscope_server
from tests.client.cli.conftest import Live, Modscope


@pytest.fixture
def ids(tmp_path: Path) -> str:
    numpy.save(tmp_path / "ids.npy", numpy.array([1, 3, 5]))
    return str(tmp_path / "ids.npy")


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Iterator[nn.Linear]:
    model = nn.Linear(4, 2)
    scope = modscope_server.attach(model)
    monkeypatch.setenv("MODSCOPE_ADDRESS", scope.address)
    monkeypatch.setenv("MODSCOPE_TOKEN", scope.token)
    yield model
    scope.close()


def expected(live: Live, bias: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        result = live.model(torch.tensor([1, 3, 5]), bias)
    return {key: value for key, value in result.items() if value is not None}


def test_a_structure_in_json(live: Live, modscope: Modscope, ids: str) -> None:
    result = modscope("forward", "--input", ids, "-o", "json").json
    assert result["loss"] is None
    for key, tensor in expected(live).items():
        assert result[key] == {"dtype": "float32", "shape": list(tensor.shape), "value": tensor.tolist()}


def test_a_structure_for_people(live: Live, modscope: Modscope, ids: str) -> None:
    printed = modscope("forward", "--input", ids).out
    assert "logits  float32 [3, 10]\n[[" in printed
    assert "hidden  float32 [3, 4]\n[[" in printed
    assert "loss  None\n" in printed


def test_arguments_by_name(live: Live, modscope: Modscope, ids: str, tmp_path: Path) -> None:
    bias = torch.arange(10.0)
    save_file({"bias": bias}, tmp_path / "bias.safetensors")
    result = modscope(
        "forward", "--input", f"ids={ids}", "--input", f"bias={tmp_path / 'bias.safetensors'}", "-o", "json"
    ).json
    assert result["logits"]["value"] == expected(live, bias)["logits"].tolist()


def test_saved(live: Live, modscope: Modscope, ids: str, tmp_path: Path) -> None:
    outcome = modscope("forward", "--input", ids, "--out", str(tmp_path / "out.safetensors"))
    assert (outcome.code, outcome.out) == (0, "")
    assert "loss" in outcome.err
    saved = load_file(tmp_path / "out.safetensors")
    assert saved.keys() == {"logits", "hidden"}
    assert all(torch.equal(saved[key], tensor) for key, tensor in expected(live).items())
    assert modscope("forward", "--input", ids, "--out", str(tmp_path / "out.json")).code == 0
    assert json.loads((tmp_path / "out.json").read_text())["loss"] is None
    refused = modscope("forward", "--input", ids, "--out", str(tmp_path / "out.npy"))
    assert refused.code == 5
    assert ".safetensors or .json" in refused.err
    assert not (tmp_path / "out.npy").exists()


def test_a_bare_tensor(plain: nn.Linear, modscope: Modscope, tmp_path: Path) -> None:
    x = torch.linspace(-1, 1, 8).reshape(2, 4)
    numpy.save(tmp_path / "x.npy", x.numpy())
    assert modscope("forward", "--input", str(tmp_path / "x.npy"), "--out", str(tmp_path / "y.npy")).code == 0
    with torch.no_grad():
        assert torch.equal(torch.from_numpy(numpy.load(tmp_path / "y.npy")), plain(x))
        printed = modscope("forward", "--input", str(tmp_path / "x.npy"), "-o", "json").json
        assert printed == {"dtype": "float32", "shape": [2, 2], "value": plain(x).tolist()}


def test_the_mode(live: Live, modscope: Modscope, ids: str) -> None:
    evaluated = modscope("forward", "--input", ids, "-o", "json").json
    trained = modscope("forward", "--input", ids, "--mode", "train", "-o", "json").json
    assert evaluated != trained
    assert modscope("forward", "--input", ids, "-o", "json").json == evaluated


def test_an_exception_in_the_model(live: Live, modscope: Modscope, tmp_path: Path) -> None:
    numpy.save(tmp_path / "bad.npy", numpy.array([99]))
    outcome = modscope("forward", "--input", str(tmp_path / "bad.npy"), "-o", "json")
    assert outcome.code == 5
    error = json.loads(outcome.err)
    assert error["reason"] == "FORWARD_RAISED"
    assert "index out of range" in error["message"]


@pytest.mark.parametrize(
    "arguments", [["x.npy"], ["ids=x.npy"], ["mode={ids}"], ["ids={ids}", "ids={ids}"]], ids=str
)
def test_usage(arguments: list[str], live: Live, modscope: Modscope, ids: str) -> None:
    inputs = [word for argument in arguments for word in ("--input", argument.format(ids=ids))]
    assert modscope("forward", *inputs).code == 2
    assert modscope("forward", "--input", ids, "--out", "y.txt").code == 2
