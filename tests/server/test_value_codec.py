"""Values as JSON and back: the same type, the same value, the same tensor where it was the same."""

from __future__ import annotations

import collections
import json
import math
import random
from typing import Any

import numpy
import pytest
import torch

from modscope_server.inspection.tensor_table import Collector, Thaw
from modscope_server.inspection.value_codec import LEFT, Encoder, decode

VALUES: dict[str, Any] = {
    "None": None,
    "bools": [True, False],
    "whole numbers": [0, -1, 2**80],
    "floats": [1.0, -0.0, 0.1, 5e-324, math.inf, -math.inf],
    "complex": [1 + 2j, complex(math.inf, -0.0)],
    "text": ["", "\u00e9\0\n", {"is": "tensor"}],
    "bytes": [b"\0\xff", bytearray(b"ab")],
    "tuples": (1, (2, [3, ()])),
    "sets": [{1, 2}, frozenset({"a"})],
    "dicts": {1: "a", None: "b", (1, 2): "c", "d": {}, 1.5: []},
    "kinds of dict": [
        collections.OrderedDict([("b", 1), ("a", 2)]),
        collections.Counter({3: 2}),
        collections.defaultdict(list, {1: [2]}),
        collections.defaultdict(None, {1: 2}),
    ],
    "deque": collections.deque([1, 2], maxlen=3),
    "torch's": [torch.float16, torch.bool, torch.device("cpu"), torch.Size([1, 2])],
    "numpy scalars": [numpy.float32(0.1), numpy.int64(-3), numpy.bool_(True), numpy.datetime64("2026-01-01")],
    "python's generator": random.Random(1).getstate(),
}


def coded(value: Any) -> Any:
    """The value after a way through JSON text."""
    collector = Collector()
    encoder = Encoder(collector)
    text = json.dumps(encoder.encode(value, "it"), allow_nan=False)
    assert not encoder.lost
    return decode(json.loads(text), Thaw(collector.copy()))


@pytest.mark.parametrize("name", VALUES)
def test_values_come_back_exactly(name: str) -> None:
    value = VALUES[name]
    back = coded(value)
    assert back == value
    assert repr(back) == repr(value)


def test_nan_comes_back() -> None:
    assert math.isnan(coded([math.nan])[0])


def test_arrays_and_tensors_come_back() -> None:
    array = numpy.arange(6, dtype=">i2").reshape(2, 3)[:, ::-1]
    back = coded(array)
    assert (back.dtype, back.tolist()) == (array.dtype, array.tolist())
    parameter = torch.nn.Parameter(torch.randn(2))
    learning = torch.randn(2, requires_grad=True)
    for tensor in (parameter, learning, torch.tensor(3.5).bfloat16(), torch.eye(3).to_sparse()):
        back = coded(tensor)
        assert type(back) is type(tensor)
        assert (back.dtype, back.layout, back.requires_grad) == (
            tensor.dtype,
            tensor.layout,
            tensor.requires_grad,
        )
        assert torch.equal(back.to_dense(), tensor.to_dense())


def test_what_was_one_tensor_is_one_tensor_again_and_views_are_views() -> None:
    flat = torch.zeros(10)
    one, again, whole, part = coded([flat, flat, flat.view(10), flat[2:]])
    assert one is again is whole
    one[2] = 7
    assert part[0] == 7
    assert flat[2] == 0


def test_what_is_decoded_shares_nothing_with_the_table() -> None:
    collector = Collector()
    node = Encoder(collector).encode([torch.zeros(2)], "it")
    table = collector.copy()
    for _ in range(2):
        (made,) = decode(node, Thaw(table))
        assert torch.equal(made, torch.zeros(2))
        made.fill_(1)


def test_memory_formats_come_back() -> None:
    images = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    back = coded(images)
    assert back.stride() == images.stride()
    assert torch.equal(back, images)
    assert coded(torch.randn(4, 6)[:, ::2]).is_contiguous()


class Own(dict[str, int]):
    """No kind of value that is known."""


@pytest.mark.parametrize("lost", [len, Own(), object(), torch.empty(2, device="meta"), numpy.array([None])])
def test_what_has_no_kind_is_lost_and_what_is_there_stays(lost: Any) -> None:
    collector = Collector()
    encoder = Encoder(collector)
    node = json.loads(json.dumps(encoder.encode({"kept": 1, "lost": lost, "list": [lost]}, "it")))
    assert set(encoder.lost) == {"it/lost", "it/list/0"}
    thaw = Thaw(collector.copy())
    assert decode(node, thaw, {"kept": 2, "lost": "here", "list": ["there"]}) == {
        "kept": 1,
        "lost": "here",
        "list": ["there"],
    }
    assert decode(node, thaw) == {"kept": 1, "list": [None]}
    assert decode(node["items"][1][1], thaw) is LEFT


def test_what_holds_itself_ends() -> None:
    value: list[Any] = []
    value.append(value)
    encoder = Encoder(Collector())
    encoder.encode(value, "it")
    assert list(encoder.lost.values()) == ["something that holds itself"]


def test_what_no_encoder_made_is_refused() -> None:
    with pytest.raises(ValueError, match="surprise"):
        decode({"is": "surprise"}, Thaw(Collector().copy()))
