"""Requests carry what people ask for, and the contract's defaults where they say nothing."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
import torch

from modscope import paths
from modscope.v1 import model_service_pb2
from modscope_client import requests
from modscope_client.errors import InvalidArgument


def write(array: Any = None, **options: Any) -> Any:
    return requests.write(
        "m", "w", array, **{"cast": False, "fill": None, "allow_non_finite": False, **options}
    )


def test_a_class_is_its_qualified_name() -> None:
    for type_, expected in (
        (torch.nn.Linear, "torch.nn.modules.linear.Linear"),
        ("Linear", "Linear"),
        (None, ""),
    ):
        assert requests.list_modules("m", "*", type_, None, None).type == expected
        assert requests.freeze("m", "*", type_, force=True, norm_stats=False).type == expected


def test_depth_is_counted_from_a_root() -> None:
    assert not requests.list_modules("m", "*", None, None, None).HasField("root")
    asked = requests.list_modules("m", "*", None, None, 0)
    assert (asked.root, asked.depth) == ("", 0) and asked.HasField("root") and asked.HasField("depth")
    assert requests.list_modules("m", "*", None, "a", None).root == "a"


def test_a_write_takes_an_array_or_a_fill() -> None:
    first, tensor = write(numpy.zeros((2, 3), "f4"))
    assert (first.spec.dtype_name, list(first.spec.shape), first.spec.byte_size) == ("float32", [2, 3], 24)
    assert not first.cast and not first.HasField("fill") and len(tensor.data) == 24
    first, tensor = write(fill=0)
    assert (
        first.fill.integer == 0 and first.HasField("fill") and not first.HasField("spec") and tensor is None
    )
    for wrong in ({}, {"array": [1], "fill": 1}):
        with pytest.raises(InvalidArgument, match="either an array or fill="):
            write(**wrong)


def test_numbers_in_lists_take_the_targets_dtype_and_arrays_do_not() -> None:
    assert write([1.0, 2.0])[0].cast and write(3)[0].cast
    for array in (numpy.zeros(2), torch.zeros(2), numpy.float32(1)):
        assert not write(array)[0].cast
        assert write(array, cast=True)[0].cast


def test_schemes_and_their_arguments() -> None:
    asked = requests.reinitialize(
        "m", "*", None, "weight", "normal_", 7, reset_optimizer=False,
        arguments={"mean": 0, "std": 0.02, "nonlinearity": "relu"},
        options=requests.options(None, True, None),
    )  # fmt: skip
    assert asked.seed == 7 and asked.parameter == "weight" and asked.keep_optimizer_state and asked.dry_run
    assert asked.arguments["mean"].integer == 0 and asked.arguments["std"].real == 0.02
    assert asked.arguments["nonlinearity"].text == "relu"
    with pytest.raises(InvalidArgument, match="std"):
        requests.reinitialize(
            "m", "*", None, None, "normal_", None, reset_optimizer=True, arguments={"std": [1]}
        )
    with pytest.raises(InvalidArgument, match="seed"):
        requests.reinitialize("m", "*", None, None, "normal_", -1, reset_optimizer=True, arguments={})


def test_forward() -> None:
    first, tensors = requests.forward(
        "m", (numpy.ones(2), 3), {"mask": torch.zeros(1), "use_cache": False}, "train"
    )
    assert first.mode == model_service_pb2.FORWARD_MODE_TRAIN and first.tensors == len(tensors) == 2
    assert [value.WhichOneof("kind") for value in first.args] == ["tensor", "integer"]
    assert {entry.key: entry.value.WhichOneof("kind") for entry in first.kwargs.entries} == {
        "mask": "tensor",
        "use_cache": "boolean",
    }
    with pytest.raises(InvalidArgument, match="mode 'evil'"):
        requests.forward("m", (), {}, "evil")


@pytest.mark.parametrize("path", ["a", "a.b", "odd [x] {y,z}*?", "back\\slash"])
def test_the_glob_of_a_subtree(path: str) -> None:
    pattern = paths.compile_glob(requests.subtree(path))
    assert pattern.fullmatch(path) and pattern.fullmatch(f"{path}.c.d")
    for other in ("", f"{path}x", f"x{path}", f"x.{path}", "b"):
        assert not pattern.fullmatch(other)
    assert paths.compile_glob(requests.subtree("")).fullmatch("anything")


def test_options_are_sent_where_there_are_any() -> None:
    assert requests.options(None, False, None) is None
    asked = requests.unfreeze("m", "*", None, options=requests.options({"w": "sha256:0"}, True, "mine"))
    assert dict(asked.options.expected) == {"w": "sha256:0"}
    assert asked.options.dry_run and asked.options.request_id == "mine"
    assert not requests.unfreeze("m", "*", None).HasField("options")
    for wrong in ({"w": 7}, "sha256:0", {"w": {"w": "sha256:0"}}):
        with pytest.raises(InvalidArgument) as refusal:
            requests.options(wrong, False, None)  # type: ignore[arg-type]
        assert refusal.value.details["field"] == "expected"
    with pytest.raises(InvalidArgument, match="request_id"):
        requests.options(None, False, 7)  # type: ignore[arg-type]


def test_freezing_running_statistics() -> None:
    assert requests.freeze("m", "*", None, force=False, norm_stats=True).norm_stats
