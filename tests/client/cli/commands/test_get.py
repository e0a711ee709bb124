"""get: the elements of one tensor, printed and saved."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import nn

import modscope_server
from tests.client.cli.conftest import Live, Modscope


def test_what_is_printed(live: Live, modscope: Modscope, golden: Callable[[str, str], None]) -> None:
    golden("get_scale", modscope("get", "scale").out)
    golden("get_scale_json", modscope("get", "scale", "-o", "json").out)


def test_every_form_says_the_same(live: Live, modscope: Modscope) -> None:
    expected = {
        "path": "embed.weight",
        "dtype": "float32",
        "shape": [10, 4],
        "step": 0,
        "value": live.model.embed.weight.tolist(),
    }
    assert modscope("get", "embed.weight", "-o", "json").json == expected
    assert json.loads(modscope("get", "embed.weight", "-o", "jsonl").out) == expected
    assert yaml.safe_load(modscope("get", "embed.weight", "-o", "yaml").out) == expected
    assert modscope("get", "embed.weight", "-o", "name").out == "embed.weight\n"


def test_json_is_never_cut_and_a_table_is(modscope: Modscope, monkeypatch: pytest.MonkeyPatch) -> None:
    wide = nn.Linear(100, 100)
    with modscope_server.attach(wide) as scope:
        monkeypatch.setenv("MODSCOPE_ADDRESS", scope.address)
        monkeypatch.setenv("MODSCOPE_TOKEN", scope.token)
        assert modscope("get", "weight", "-o", "json").json["value"] == wide.weight.tolist()
        assert "..." in modscope("get", "weight").out


def test_numbers_that_json_lacks(live: Live, modscope: Modscope) -> None:
    with torch.no_grad():
        live.model.scale[:3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    assert modscope("get", "scale", "-o", "json").json["value"] == ["NaN", "Infinity", "-Infinity", 1.0]


def test_gradient_and_optimizer_state(live: Live, modscope: Modscope) -> None:
    assert modscope("get", "scale", "--what", "grad").code == 5
    live.step(2)
    got = modscope("get", "scale", "--what", "grad", "-o", "json").json
    assert live.model.scale.grad is not None
    assert (got["value"], got["step"]) == (live.model.scale.grad.tolist(), 2)
    moments = live.optimizer.state[live.model.scale]["exp_avg"]
    assert modscope("get", "scale", "--what", "exp_avg", "-o", "json").json["value"] == moments.tolist()
    outcome = modscope("get", "scale", "--what", "exp_avgg")
    assert outcome.code == 5
    assert "exp_avg_sq" in outcome.err


@pytest.mark.parametrize("suffix", ["npy", "safetensors"])
def test_saved(suffix: str, live: Live, modscope: Modscope, tmp_path: Path) -> None:
    file = tmp_path / f"weight.{suffix}"
    outcome = modscope("get", "embed.weight", "--out", str(file))
    assert (outcome.code, outcome.out) == (0, "")
    assert "float32 [10, 4]" in outcome.err
    loaded = torch.from_numpy(numpy.load(file)) if suffix == "npy" else load_file(file)["embed.weight"]
    assert torch.equal(loaded, live.model.embed.weight)


def test_npy_has_no_name_for_bfloat16(
    modscope: Modscope, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = nn.Linear(3, 2).to(torch.bfloat16)
    with modscope_server.attach(model) as scope:
        monkeypatch.setenv("MODSCOPE_ADDRESS", scope.address)
        monkeypatch.setenv("MODSCOPE_TOKEN", scope.token)
        outcome = modscope("get", "weight", "--out", str(tmp_path / "w.npy"))
        assert outcome.code == 5
        assert "bfloat16" in outcome.err
        assert ".safetensors" in outcome.err.partition("hint: ")[2]
        assert list(tmp_path.iterdir()) == []
        assert modscope("get", "weight", "--out", str(tmp_path / "w.safetensors")).code == 0
        assert torch.equal(load_file(tmp_path / "w.safetensors")["weight"], model.weight)
        assert modscope("get", "bias", "-o", "json").json["value"] == model.bias.tolist()
        assert "bfloat16 [2]" in modscope("get", "bias").out


def test_a_file_of_no_known_kind_is_refused_before_anything_is_read(live: Live, modscope: Modscope) -> None:
    outcome = modscope("get", "scale", "--out", "weight.csv")
    assert outcome.code == 2
    assert ".npy or .safetensors" in outcome.err
