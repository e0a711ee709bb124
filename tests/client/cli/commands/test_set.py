"""set: one tensor written in place, from JSON, from a file, filled."""

from __future__ import annotations

import json
from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import save_file

from tests.client.cli.conftest import Live, Modscope


def test_a_value_takes_the_dtype_of_the_target(live: Live, modscope: Modscope) -> None:
    scale = live.model.scale
    outcome = modscope("set", "scale", "--value", "[1, 2.5, -3, 0.1]", "-o", "json")
    assert outcome.code == 0
    assert torch.equal(scale, torch.tensor([1, 2.5, -3, 0.1]))
    assert live.model.scale is scale
    operation = outcome.json
    assert (operation["kind"], operation["paths"], operation["outcome"]) == ("write", ["scale"], "applied")
    assert modscope("set", "mask", "--value", "[true, false, true, false]").code == 0
    assert live.model.mask.tolist() == [True, False, True, False]
    assert modscope("set", "body.2.num_batches_tracked", "--value", "7").code == 0
    assert live.model.body[2].num_batches_tracked.item() == 7


def test_what_get_printed_goes_back(live: Live, modscope: Modscope) -> None:
    before = live.model.embed.weight.detach().clone()
    value = json.dumps(modscope("get", "embed.weight", "-o", "json").json["value"])
    assert modscope("set", "embed.weight", "--fill", "0").code == 0
    assert not live.model.embed.weight.any()
    assert modscope("set", "embed.weight", "--value", value).code == 0
    assert torch.equal(live.model.embed.weight, before)


def test_what_it_prints(live: Live, modscope: Modscope) -> None:
    outcome = modscope("set", "scale", "--fill", "-0.5")
    assert outcome.lines == [
        f"wrote 1 tensor at step 0 ({outcome.out.partition('(')[2].partition(')')[0]})",
        "  scale",
    ]
    assert live.model.scale.tolist() == [-0.5] * 4
    name = modscope("set", "scale", "--fill", "1", "-o", "name")
    assert len(name.lines) == 1


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--value", "[1, 2]"], "SHAPE_MISMATCH"),
        (["--value", "3"], "SHAPE_MISMATCH"),
        (["--value", '["a", 1, 2, 3]'], "DTYPE_MISMATCH"),
        (["--value", "[1e300, 1, 2, 3]"], "NOT_FINITE"),
        (["--value", '["NaN", 1, 2, 3]'], "NOT_FINITE"),
        (["--fill", "nan"], "NOT_FINITE"),
        (["--fill", "1e300"], "NOT_FINITE"),
    ],
)
def test_what_does_not_fit_is_refused(
    arguments: list[str], reason: str, live: Live, modscope: Modscope
) -> None:
    outcome = modscope("set", "scale", *arguments, "-o", "json")
    assert outcome.code == 5
    assert json.loads(outcome.err)["reason"] == reason
    assert live.model.scale.tolist() == [1.0] * 4


def test_nan_where_it_is_meant(live: Live, modscope: Modscope) -> None:
    assert modscope("set", "scale", "--value", '["NaN", 1, 2, 3]', "--allow-non-finite").code == 0
    assert live.model.scale.isnan().tolist() == [True, False, False, False]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--value", "[1]", "--fill", "0"],
        ["--value", "[1,"],
        ["--value", "[[1, 2], [3]]"],
        ["--fill", "[1]"],
        ["--fill", "x"],
        ["--fill", "0", "--cast"],
        ["--from", "/no/such.npy"],
    ],
    ids=str,
)
def test_usage(arguments: list[str], live: Live, modscope: Modscope) -> None:
    outcome = modscope("set", "scale", *arguments)
    assert (outcome.code, outcome.out) == (2, "")


def test_from_files(live: Live, modscope: Modscope, tmp_path: Path) -> None:
    numpy.save(tmp_path / "f32.npy", numpy.array([1, 2, 3, 4], "float32"))
    numpy.save(tmp_path / "f64.npy", numpy.array([5, 6, 7, 8], "float64"))
    assert modscope("set", "scale", "--from", str(tmp_path / "f32.npy")).code == 0
    assert live.model.scale.tolist() == [1, 2, 3, 4]
    refused = modscope("set", "scale", "--from", str(tmp_path / "f64.npy"))
    assert refused.code == 5
    assert "float64" in refused.err
    assert "--cast" in refused.err
    assert modscope("set", "scale", "--from", str(tmp_path / "f64.npy"), "--cast").code == 0
    assert live.model.scale.tolist() == [5, 6, 7, 8]


def test_from_safetensors(live: Live, modscope: Modscope, tmp_path: Path) -> None:
    several = str(tmp_path / "several.safetensors")
    save_file({"scale": torch.full((4,), 2.0), "other": torch.zeros(2)}, several)
    assert modscope("set", "scale", "--from", several).code == 0
    assert live.model.scale.tolist() == [2.0] * 4
    outcome = modscope("set", "embed.weight", "--from", several)
    assert outcome.code == 5
    assert "other" in outcome.err
    bfloat = str(tmp_path / "one.safetensors")
    save_file({"x": torch.full((4,), 3.0, dtype=torch.bfloat16)}, bfloat)
    assert modscope("set", "scale", "--from", bfloat).code == 5
    assert modscope("set", "scale", "--from", bfloat, "--cast").code == 0
    assert live.model.scale.tolist() == [3.0] * 4


def test_files_that_are_not_what_they_say(live: Live, modscope: Modscope, tmp_path: Path) -> None:
    for name in ("x.npy", "x.safetensors"):
        (tmp_path / name).write_bytes(b"nonsense, and more of it")
        outcome = modscope("set", "scale", "--from", str(tmp_path / name))
        assert outcome.code == 5
        assert name in outcome.err
    numpy.save(tmp_path / "object.npy", numpy.array([{}]), allow_pickle=True)
    assert modscope("set", "scale", "--from", str(tmp_path / "object.npy")).code == 5
    numpy.save(tmp_path / "void.npy", numpy.zeros(4, "V2"))
    outcome = modscope("set", "scale", "--from", str(tmp_path / "void.npy"))
    assert outcome.code == 5
    assert ".safetensors" in outcome.err
