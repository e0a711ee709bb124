"""Interventions on structured values: the container keeps its kind, all else in it stays what it was."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn
from transformers.modeling_outputs import CausalLMOutput

from modscope_server.errors import BadRequest
from modscope_server.inspection.slices import parse_index
from tests.server.intervention_support import ACTING, NOT_ACTING, PRE, here, intervened, told


class Pair(NamedTuple):
    first: torch.Tensor
    second: torch.Tensor


@dataclasses.dataclass(frozen=True)
class Frozen:
    value: torch.Tensor
    rest: tuple[int, str] = (1, "x")


class Gives(nn.Module):
    """Gives what it was made with."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def forward(self) -> Any:
        return self.value


def ones() -> torch.Tensor:
    return torch.ones(2, 3)


KINDS: dict[str, tuple[Callable[[], Any], str, Callable[[Any], Any]]] = {
    "tuple": (lambda: (ones(), ones()), "1", lambda v: v[1]),
    "list": (lambda: [None, ones()], "1", lambda v: v[1]),
    "dict": (lambda: {"a": ones(), "b": ones()}, "b", lambda v: v["b"]),
    "ordered": (lambda: collections.OrderedDict(a=ones(), b=ones()), "a", lambda v: v["a"]),
    "named": (lambda: Pair(ones(), ones()), "0", lambda v: v.first),
    "returned": (lambda: ones().max(0), "0", lambda v: v.values),
    "frozen": (lambda: Frozen(ones()), "value", lambda v: v.value),
    "output": (lambda: CausalLMOutput(logits=ones()), "logits", lambda v: v.logits),
    "nested": (
        lambda: CausalLMOutput(logits=ones(), hidden_states=(ones(), ones())),
        "hidden_states.1",
        lambda v: v.hidden_states[1],
    ),
    "deep": (lambda: {"a.b": [(ones(),)], "a": {"c": ones()}}, "a.b.0.0", lambda v: v["a.b"][0][0]),
}


def leaves(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if dataclasses.is_dataclass(value) and not isinstance(value, dict):
        value = vars(value)
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [leaf for item in items for leaf in leaves(item)]


@pytest.mark.parametrize("name", KINDS)
def test_a_container_keeps_its_kind_and_its_other_entries(name: str) -> None:
    make, key, at = KINDS[name]
    module = Gives(make())
    with here(module) as rpc:
        made = intervened(rpc, "", scale=3.0, key=key)
        given = module()
        assert type(given) is type(module.value)
        assert torch.equal(at(given), at(module.value) * 3)
        assert (at(module.value) == 1).all(), "what the module holds is left alone"
        changed = [new is not old for new, old in zip(leaves(given), leaves(module.value), strict=True)]
        assert sum(changed) == 1
        assert told(rpc, made).state == ACTING


class Takes(nn.Module):
    """Gives what it gets."""

    def forward(self, x: Any, *more: Any, mask: Any = None, **named: Any) -> Any:
        return x, more, mask, named


def test_arguments_by_position_and_by_name() -> None:
    module = Takes()
    x, y, mask = torch.ones(2), torch.ones(3), torch.ones(4)
    with here(module) as rpc:
        for key in ("1.0", "mask"):
            intervened(rpc, "", scale=5.0, hook=PRE, key=key)
        given = module(x, [y], mask=mask, flag=True)
        assert given[0] is x and given[3] == {"flag": True}
        assert torch.equal(given[1][0][0], y * 5) and torch.equal(given[2], mask * 5)
        rpc.RemoveInterventions(all=True)
        intervened(rpc, "", scale=7.0, hook=PRE)
        assert torch.equal(module(None, 3, mask=mask)[2], mask * 7), "the only tensor needs no key"


@pytest.mark.parametrize(
    ("value", "asked", "why"),
    [
        ((ones(), ones()), {"scale": 2.0}, "needs a key: the value has '0', '1'"),
        ("text", {"scale": 2.0}, "has no tensor"),
        ({"a": ones()}, {"scale": 2.0, "key": "b"}, "no key 'b': the value has 'a'"),
        ((None, ones()), {"scale": 2.0, "key": "0"}, "None at key '0'"),
        (ones(), {"zero": {}, "index": "[5]"}, "index 5 is out of bounds"),
        (ones(), {"zero": {}, "index": "[..., 0, 0, 0]"}, "too many indices"),
        (ones(), {"replace": True, "tensor": torch.ones(3, 3)}, "[3, 3] does not fit [2, 3]"),
        (ones(), {"add_tensor": True, "tensor": torch.ones(4, 2, 3)}, "[4, 2, 3] does not fit [2, 3]"),
        (ones().long(), {"scale": 0.5}, "would make float32 [2, 3] of int64 [2, 3]"),
        (ones().long(), {"noise": {"std": 1.0}}, "noise is no int64"),
        (ones().long(), {"replace": True, "tensor": torch.ones(3)}, "a float32 array does not go into int64"),
        (
            ones(),
            {"replace": True, "tensor": torch.tensor([1e300], dtype=torch.float64)},
            "that float32 does not",
        ),
        (ones().half(), {"add_tensor": True, "tensor": torch.full((3,), 1e6)}, "that float16 does not have"),
        (ones().to_sparse(), {"scale": 2.0}, "sparse"),
    ],
    ids=str,
)
def test_what_does_not_fit_passes_unchanged_and_is_told(value: Any, asked: dict[str, Any], why: str) -> None:
    module = Gives(value)
    with here(module) as rpc:
        made = intervened(rpc, "", **asked)
        assert module() is value
        now = told(rpc, made)
        assert (now.state, now.applied) == (NOT_ACTING, 0)
        assert why in now.note


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float64, torch.complex64, torch.int64]
)
def test_the_dtype_is_kept(dtype: torch.dtype) -> None:
    value = torch.arange(6).reshape(2, 3).to(dtype)
    module = Gives(value)
    with here(module) as rpc:
        intervened(rpc, "", scale=3.0)
        intervened(rpc, "", replace=True, tensor=torch.tensor(7).to(torch.uint8), index="[0, 1:]")
        expected = value * 3
        expected[0, 1:] = 7
        assert module().dtype == dtype and torch.equal(module(), expected)


@pytest.mark.parametrize(
    ("text", "index"),
    [
        ("", ()),
        ("[:]", (slice(None),)),
        ("[ :, -1 , : ]", (slice(None), -1, slice(None))),
        ("1:10:2, ...", (slice(1, 10, 2), ...)),
        ("[-3:,]", (slice(-3, None),)),
        ("[+2]", (2,)),
    ],
)
def test_indices(text: str, index: Any) -> None:
    assert parse_index(text) == index


NO_INDICES = (
    *("[", "[]", "[a]", "[0:1:2:3]", "[..., ...]", "[::-1]", "[::0]", "[None]", "[True]"),
    *("[1.5]", "[()]", "[[0]]", "[\u0663]", "[0]" * 100, f"[{'9' * 30}]"),
)


@pytest.mark.parametrize("text", NO_INDICES)
def test_what_is_no_index(text: str) -> None:
    with pytest.raises(BadRequest):
        parse_index(text)
