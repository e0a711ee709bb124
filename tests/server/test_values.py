"""Structured values, there and back."""

from __future__ import annotations

import enum
from collections import OrderedDict, namedtuple
from dataclasses import dataclass, field
from typing import Any, NoReturn

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from modscope_server.errors import BadRequest
from modscope_server.inspection.values import (
    ListNode,
    MappingNode,
    NoneNode,
    Opaque,
    Scalar,
    TensorRef,
    TupleNode,
    flatten,
    map_tensors,
    named_tensors,
    unflatten,
)

Pair = namedtuple("Pair", ["left", "right"])


@dataclass
class Outcome:
    logits: torch.Tensor
    loss: torch.Tensor | None = None
    past: tuple[Any, ...] = ()
    late: torch.Tensor = field(init=False)


class Mute:
    def __repr__(self) -> NoReturn:
        raise RuntimeError("no repr")


class Level(enum.IntEnum):
    LOW = 3


def test_a_bare_tensor_is_a_bare_tensor() -> None:
    tensor = torch.ones(2)
    structure, tensors = flatten(tensor)
    assert structure == TensorRef(0)
    assert tensors[0] is tensor
    assert unflatten(structure, tensors) is tensor


def test_each_kind_of_container_keeps_its_kind() -> None:
    a, b = torch.ones(2), torch.zeros(3)
    structure, tensors = flatten({"x": [a, None], "y": (b, 2, True, 0.5, "text"), 7: Pair(a, b)})
    assert structure == MappingNode(
        "",
        (
            ("x", ListNode((TensorRef(0), NoneNode()))),
            ("y", TupleNode((TensorRef(1), Scalar(2), Scalar(True), Scalar(0.5), Scalar("text")))),
            ("7", TupleNode((TensorRef(0), TensorRef(1)))),
        ),
    )
    assert tensors == [a, b]
    back = unflatten(structure, tensors)
    assert back["x"][0] is a
    assert back["x"][1] is None
    assert isinstance(back["x"], list)
    assert isinstance(back["y"], tuple)
    assert back["y"][1:] == (2, True, 0.5, "text")


def test_dataclasses_and_other_mappings_become_mappings_that_name_their_class() -> None:
    a = torch.ones(1)
    structure, tensors = flatten(Outcome(a))
    assert structure == MappingNode(
        "Outcome", (("logits", TensorRef(0)), ("loss", NoneNode()), ("past", TupleNode(())))
    )
    assert unflatten(structure, tensors) == {"logits": a, "loss": None, "past": ()}
    assert flatten(OrderedDict(b=a))[0] == MappingNode("OrderedDict", (("b", TensorRef(0)),))
    assert flatten(Outcome)[0] == Opaque("builtins.type", repr(Outcome))


def test_a_transformers_output_is_a_mapping_of_what_it_holds() -> None:
    outputs = pytest.importorskip("transformers.modeling_outputs")
    a = torch.ones(1, 2)
    output = outputs.CausalLMOutputWithPast(logits=a, hidden_states=(a, a * 2))
    structure, tensors = flatten(output)
    assert isinstance(structure, MappingNode)
    assert structure.type == "CausalLMOutputWithPast"
    assert [key for key, _ in structure.entries] == list(output.keys()) == ["logits", "hidden_states"]
    assert len(tensors) == 2
    assert [key for key, _ in named_tensors(output)] == ["logits", "hidden_states.0", "hidden_states.1"]


def test_numbers_keep_their_kind_and_what_64_bits_cannot_hold_is_opaque() -> None:
    assert flatten(True)[0] == Scalar(True)
    assert flatten(Level.LOW)[0] == Scalar(3)
    assert flatten(2**63 - 1)[0] == Scalar(2**63 - 1)
    assert flatten(-(2**63))[0] == Scalar(-(2**63))
    assert flatten(2**63)[0] == Opaque("builtins.int", str(2**63))
    assert flatten(torch.Size([2, 3]))[0] == TupleNode((Scalar(2), Scalar(3)))


def test_what_has_no_form_is_told_and_cannot_be_rebuilt() -> None:
    structure, tensors = flatten([torch.float32, {1, 2}, "x" * 500, nn.ReLU(), Mute(), bytearray(500)])
    assert isinstance(structure, ListNode)
    dtype, numbers, text, module, mute, long = structure.items
    assert dtype == Opaque("torch.dtype", "torch.float32")
    assert numbers == Opaque("builtins.set", "{1, 2}")
    assert text == Scalar("x" * 500)
    assert module == Opaque("torch.nn.modules.activation.ReLU", "ReLU()")
    assert isinstance(mute, Opaque)
    assert mute.repr == "<Mute: repr raised RuntimeError>"
    assert isinstance(long, Opaque)
    assert len(long.repr) == 200
    with pytest.raises(BadRequest, match=r"torch\.dtype cannot be rebuilt from 'torch\.float32'"):
        unflatten(structure, tensors)


@pytest.mark.parametrize("index", [-1, 1])
def test_a_tensor_that_did_not_come_is_refused(index: int) -> None:
    with pytest.raises(BadRequest, match=f"names tensor {index}, but 1 tensors came"):
        unflatten(ListNode((TensorRef(index),)), [torch.ones(1)])


def test_what_holds_itself_or_goes_too_deep_ends_in_opaque() -> None:
    loop: list[Any] = [torch.ones(1)]
    loop.append(loop)
    structure, tensors = flatten(loop)
    assert isinstance(structure, ListNode)
    assert isinstance(structure.items[1], Opaque)
    assert len(tensors) == 1
    assert named_tensors(loop) == [("0", loop[0])]
    assert map_tensors(loop, lambda tensor: tensor) is loop

    deep: Any = torch.ones(1)
    for _ in range(5000):
        deep = [deep]
    structure, tensors = flatten(deep)
    assert tensors == []
    assert named_tensors(deep) == []
    twice = [1]
    assert flatten([twice, twice])[0] == ListNode((ListNode((Scalar(1),)),) * 2)


def test_keys_of_named_tensors() -> None:
    a, b = torch.ones(1), torch.zeros(1)
    assert named_tensors(a) == [("", a)]
    assert named_tensors(None) == [("", None)]
    assert named_tensors((a, None, 3, "text")) == [("0", a), ("1", None)]
    assert named_tensors({"logits": a, "past": ((a, b),), "n": 1}) == [
        ("logits", a),
        ("past.0.0", a),
        ("past.0.1", b),
    ]
    assert named_tensors(Outcome(a, past=(b,))) == [("logits", a), ("loss", None), ("past.0", b)]
    assert named_tensors(3) == []


def test_map_tensors_keeps_what_does_not_change() -> None:
    a, b = torch.ones(1), torch.zeros(1)
    value = {"a": (a, b), "b": Outcome(a), "c": [None, 1]}
    assert map_tensors(value, lambda tensor: tensor) is value
    changed = map_tensors(value, lambda tensor: tensor + 1 if tensor is b else tensor)
    assert changed["b"] is value["b"]
    assert changed["c"] is value["c"]
    assert changed["a"][0] is a
    assert torch.equal(changed["a"][1], b + 1)
    assert isinstance(map_tensors(Pair(a, b), lambda tensor: tensor + 1), Pair)
    packed = nn.utils.rnn.pack_sequence([torch.ones(2)])
    assert isinstance(map_tensors(packed, lambda tensor: tensor.clone()), nn.utils.rnn.PackedSequence)


_LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
    | st.builds(lambda n: torch.full((2,), float(n)), st.integers(0, 9))
)
_VALUES = st.recursive(
    _LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(_VALUES)
def test_plain_values_come_back_as_they_were(value: Any) -> None:
    structure, tensors = flatten(value)
    back = unflatten(structure, tensors)
    assert flatten(back)[0] == structure
    assert all(one is other for one, other in zip(flatten(back)[1], tensors, strict=True))
    assert type(back) is type(value)
    assert [key for key, _ in named_tensors(back)] == [key for key, _ in named_tensors(value)]
