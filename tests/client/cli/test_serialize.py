"""Records as JSON and YAML."""

from __future__ import annotations

import base64
import json
import math

import ml_dtypes
import numpy
import pytest
import yaml

from modscope.tensor import TensorData
from modscope_client.cli.serialize import (
    array_values,
    json_line,
    json_text,
    plain,
    tensor_document,
    yaml_text,
)
from modscope_client.types import BufferInfo, Event, ModuleInfo, ServerInfo, Stats, ValueInfo

STATS = Stats(6, math.nan, 0.5, -math.inf, math.inf, None, 0, 1, 2)


def test_a_record_keeps_its_field_names_and_non_finite_numbers_are_text() -> None:
    assert json.loads(json_text(STATS)) == {
        "count": 6,
        "mean": "NaN",
        "std": 0.5,
        "min": "-Infinity",
        "max": "Infinity",
        "norm": None,
        "zeros": 0,
        "nan": 1,
        "inf": 2,
    }


def test_records_nest_and_inherit() -> None:
    buffer = BufferInfo("a.b", (2, 3), "int64", "cpu", 6, False, False, stats=STATS, persistent=False)
    shown = json.loads(json_line([buffer]))[0]
    assert shown["shape"] == [2, 3]
    assert shown["persistent"] is False
    assert shown["optimizer"] is None
    assert shown["stats"]["mean"] == "NaN"


def test_repr_is_there_only_where_it_was_asked_for() -> None:
    module = ModuleInfo("a", "a", "Linear", "torch.nn.Linear", True, 0, 6, 6)
    assert "repr" not in plain(module)
    whole = ModuleInfo("a", "a", "Linear", "torch.nn.Linear", True, 0, 6, 6, repr="Linear(...)")
    assert plain(whole)["repr"] == "Linear(...)"


def test_tokens_are_never_shown() -> None:
    server = ServerInfo("unix:/s", 1, 0.0, ("m",), True, "0.1", token="secret", viewer_token="secret")
    assert "secret" not in json_text([server]) + yaml_text([server])
    assert plain(server)["models"] == ["m"]


def test_the_tensor_of_an_event_is_nested_lists() -> None:
    value = ValueInfo("output", "", (2,), "float32", array=numpy.array([1.0, numpy.nan], "float32"))
    event = Event(0, 1, "m", "a", "Linear", "forward", 0, 0.5, [value], 0)
    assert plain(event)["values"][0]["array"] == [1.0, "NaN"]


@pytest.mark.parametrize(
    ("array", "values"),
    [
        (numpy.array(2.5), 2.5),
        (numpy.array(numpy.inf), "Infinity"),
        (numpy.zeros((0, 3)), []),
        (numpy.array([[1, -2]], "int8"), [[1, -2]]),
        (numpy.array([2**64 - 1], "uint64"), [2**64 - 1]),
        (numpy.array([True, False]), [True, False]),
        (numpy.array([1 + 2j, complex(0, numpy.nan)], "complex64"), [[1.0, 2.0], [0.0, "NaN"]]),
        (numpy.array([1.5, -numpy.inf], ml_dtypes.bfloat16), [1.5, "-Infinity"]),
        (numpy.array([0.5, 448], ml_dtypes.float8_e4m3fn), [0.5, 448.0]),
        (numpy.asfortranarray([[1.0, numpy.nan], [3.0, 4.0]]), [[1.0, "NaN"], [3.0, 4.0]]),
    ],
)
def test_elements(array: object, values: object) -> None:
    assert json.loads(json_line(array_values(array))) == values


def test_float32_elements_are_told_exactly() -> None:
    array = numpy.random.default_rng(0).normal(size=50).astype("float32")
    again = numpy.array(json.loads(json_line(array)), "float64")
    assert (again == array.astype("float64")).all()


def test_a_dtype_that_numpy_lacks_is_its_bytes() -> None:
    document = tensor_document(TensorData("float4_x", (3,), b"\x01\x02"), path="p")
    assert document["dtype"] == "float4_x"
    assert base64.b64decode(document["value"]) == b"\x01\x02"


def test_yaml_says_the_same_as_json() -> None:
    assert yaml.safe_load(yaml_text(STATS)) == json.loads(json_text(STATS))
    assert yaml_text([]) == "[]\n"
