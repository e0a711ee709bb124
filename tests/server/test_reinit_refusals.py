"""What a reinitialisation refuses, and what it puts back when something fails."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import init

from modscope_server import reinit
from modscope_server.errors import (
    BadGlobError,
    BadRequest,
    ModscopeServerError,
    NoMatch,
    NotFinite,
    NotMaterialized,
    SchemeUnsuitable,
    UnknownScheme,
)
from modscope_server.reinit import SCHEMES
from tests.models import MLP, ZOO, unreadable
from tests.server.reinit_support import ARGUMENTS, SEED, agree, bits, by_hand, run


@pytest.mark.parametrize(
    ("scheme", "arguments", "field", "text"),
    [
        ("normal_", {"sigma": 1.0}, "arguments.sigma", "normal_ has no argument 'sigma'"),
        ("ones_", {"val": 1.0}, "arguments.val", "ones_ has no argument"),
        ("reset_parameters", {"std": 1.0}, "arguments.std", "reset_parameters has no argument 'std'"),
        ("normal_", {"std": "0.02"}, "arguments.std", "std of normal_ is a number, not '0.02'"),
        ("normal_", {"std": True}, "arguments.std", "is a number, not True"),
        ("normal_", {"std": -0.1}, "arguments.std", "cannot be -0.1"),
        ("normal_", {"mean": math.nan}, "arguments.mean", "cannot be nan"),
        ("normal_", {"generator": 3}, "arguments.generator", "has no argument 'generator'"),
        ("normal_", {"tensor": 3}, "arguments.tensor", "has no argument 'tensor'"),
        ("constant_", {}, "arguments.val", "constant_ needs the argument 'val'"),
        ("sparse_", {"std": 1.0}, "arguments.sparsity", "needs the argument 'sparsity'"),
        ("sparse_", {"sparsity": 1.5}, "arguments.sparsity", "cannot be 1.5"),
        ("dirac_", {"groups": 1.5}, "arguments.groups", "is a whole number, not 1.5"),
        ("dirac_", {"groups": 0}, "arguments.groups", "cannot be 0"),
        ("kaiming_normal_", {"mode": "fan"}, "arguments.mode", "mode of kaiming_normal_ cannot be 'fan'"),
        ("kaiming_normal_", {"nonlinearity": "gelu"}, "arguments.nonlinearity", "cannot be 'gelu'"),
        ("uniform_", {"a": 2.0}, "arguments.b", "a is above b"),
        ("trunc_normal_", {"mean": 100.0}, "arguments.mean", "cannot draw with mean 100"),
        ("trunc_normal_", {"std": 0.0}, "arguments.mean", "cannot draw"),
        ("trunc_normal_", {"a": 3}, "arguments.mean", "cannot draw"),
    ],
)
def test_arguments_are_checked(scheme: str, arguments: dict[str, Any], field: str, text: str) -> None:
    with pytest.raises(BadRequest) as caught:
        reinit.plan(MLP(), scheme=scheme, arguments=arguments, parameter=None)
    assert caught.value.field == field
    assert text in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_is_one_that_torch_takes(seed: int) -> None:
    with pytest.raises(BadRequest, match="a seed is a whole number"):
        reinit.plan(MLP(), scheme="normal_", seed=seed)
    run(MLP(), scheme="normal_", seed=2**64 - 1)


def test_what_is_not_there_is_told() -> None:
    model = MLP()
    with pytest.raises(UnknownScheme, match="unknown scheme 'normal'") as scheme:
        reinit.plan(model, scheme="normal")
    assert "normal_" in scheme.value.hint
    with pytest.raises(UnknownScheme) as scheme:
        reinit.plan(model, scheme="__import__")
    assert "kaiming_uniform_" in scheme.value.hint
    with pytest.raises(NoMatch, match="no module matches glob 'w9'"):
        reinit.plan(model, "w9", scheme="zeros_")
    with pytest.raises(NoMatch, match="none of the 4 selected modules has a parameter 'gamma'") as match:
        reinit.plan(model, parameter="gamma", scheme="zeros_")
    assert match.value.hint == "they have bias, weight"
    with pytest.raises(NoMatch, match="none of the 1 selected modules has parameters of its own"):
        reinit.plan(nn.Sequential(nn.ReLU()), type="ReLU", scheme="zeros_")
    with pytest.raises(NoMatch):
        reinit.plan(nn.Sequential(nn.ReLU()))
    with pytest.raises(BadGlobError):
        reinit.plan(model, "w[", scheme="zeros_")
    with pytest.raises(BadRequest, match="not 'weight' alone"):
        reinit.plan(model, parameter="weight")


@pytest.mark.parametrize(
    ("scheme", "arguments"),
    [(name, ARGUMENTS.get(name, {})) for name, scheme in SCHEMES.items() if scheme.dimensions[0]],
)
def test_a_scheme_that_cannot_serve_a_bias_is_refused_whole(scheme: str, arguments: dict[str, Any]) -> None:
    model = MLP()
    before = bits(model)
    with pytest.raises(SchemeUnsuitable) as caught:
        reinit.plan(model, scheme=scheme, arguments=arguments)
    assert f"{scheme} cannot serve" in caught.value.message
    assert f"w1.bias: {scheme} needs" in caught.value.message
    assert "and it has shape [3]" in caught.value.message
    assert 'parameter="weight"' in caught.value.hint
    assert "normal_" in caught.value.hint
    assert bits(model) == before


def test_what_else_a_scheme_cannot_serve() -> None:
    conv = nn.Sequential(nn.Conv2d(2, 3, 1, bias=False))
    with pytest.raises(SchemeUnsuitable, match=r"0\.weight: dirac_ needs a first dimension that 2 groups"):
        reinit.plan(conv, scheme="dirac_", arguments={"groups": 2})
    dtypes = ZOO["dtypes"].build()
    with pytest.raises(SchemeUnsuitable, match="turn: trunc_normal_ cannot serve complex64: "):
        reinit.plan(dtypes, scheme="trunc_normal_")
    whole = nn.ParameterList([nn.Parameter(torch.zeros(2, dtype=torch.uint8), requires_grad=False)])
    for value in (0.5, 300, -1):
        with pytest.raises(SchemeUnsuitable, match=r"^constant_ cannot serve 0: "):
            reinit.plan(whole, scheme="constant_", arguments={"val": value})
    run(whole, scheme="constant_", arguments={"val": 7})
    assert whole[0].tolist() == [7, 7]
    half = MLP().half()
    with pytest.raises(SchemeUnsuitable, match=r"w1\.weight: orthogonal_ cannot serve float16"):
        reinit.plan(half, parameter="weight", scheme="orthogonal_")
    with pytest.raises(SchemeUnsuitable, match=r"w1\.bias: constant_"):
        reinit.plan(half, parameter="bias", scheme="constant_", arguments={"val": 1e6})
    wide = nn.ParameterList([nn.Parameter(torch.zeros(1).expand(3))])
    with pytest.raises(SchemeUnsuitable, match="its elements share memory"):
        reinit.plan(wide, scheme="normal_")
    parametrized = ZOO["parametrized"].build()
    for name in ("normed", "old"):
        with pytest.raises(SchemeUnsuitable, match=f"{name}.weight: it is computed from other tensors"):
            reinit.plan(parametrized, name, parameter="weight", scheme="normal_")
        with pytest.raises(SchemeUnsuitable, match=f"'{name}' .* weight is computed from other tensors"):
            reinit.plan(parametrized, name)


def test_values_that_are_not_finite_are_put_back() -> None:
    model = MLP(40, 40, 40, 40).half()
    before = bits(model)
    with pytest.raises(NotFinite, match=r"normal_ left values in w1\.weight that are not finite"):
        run(model, parameter="weight", scheme="normal_", arguments={"std": 40_000.0}, seed=SEED)
    assert bits(model) == before


@pytest.mark.parametrize("name", ["lazy", "meta"])
def test_tensors_without_data_are_refused(name: str) -> None:
    for arguments in ({"scheme": "normal_"}, {}):
        with pytest.raises(NotMaterialized, match=name):
            reinit.plan(ZOO[name].build(), **arguments)  # type: ignore[arg-type]
    holder = unreadable()
    with pytest.raises(NotMaterialized, match=r"lazy \(uninitialized.*meta \(meta.*sparse \(sparse"):
        reinit.plan(holder, scheme="zeros_")
    reinit.plan(holder, parameter="plain", scheme="zeros_")


class Rebinds(nn.Module):
    """Makes new tensors instead of filling those that it has."""

    def __init__(self, shape: tuple[int, ...] = (2,)) -> None:
        super().__init__()
        self.register_buffer("seen", torch.ones(2))
        self.weight = nn.Parameter(torch.ones(2), requires_grad=False)
        self.shape = shape

    def reset_parameters(self) -> None:
        self.seen = torch.zeros(2)
        self.weight = nn.Parameter(torch.rand(self.shape))


def test_identity_is_kept_also_where_reset_parameters_rebinds() -> None:
    model, twin = nn.Sequential(Rebinds()), nn.Sequential(Rebinds())
    weight, seen = model[0].weight, model[0].seen
    run(model, seed=SEED)
    by_hand(twin, lambda module: module.reset_parameters() if isinstance(module, Rebinds) else None)
    assert model[0].weight is weight
    assert model[0].seen is seen
    assert not weight.requires_grad
    assert agree(model, twin)


class Fails(nn.Linear):
    """Changes its tensors, then gives up."""

    raised: type[BaseException] = RuntimeError

    def reset_parameters(self) -> None:
        nn.Linear.reset_parameters(self)
        if hasattr(self, "armed"):
            self.bias = nn.Parameter(torch.zeros(9))
            random.random(), np.random.rand()
            raise self.raised("half way")


@pytest.mark.parametrize("raised", [RuntimeError, KeyboardInterrupt])
def test_what_fails_in_the_middle_is_put_back_bit_for_bit(raised: type[BaseException]) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), Fails(2, 2), nn.Linear(2, 2))
    model[2].armed = nn.Identity()
    model[1].running_mean.fill_(5)  # type: ignore[union-attr, operator]
    Fails.raised = raised
    before = bits(model)
    if raised is RuntimeError:
        with pytest.raises(SchemeUnsuitable, match="failed at '2': RuntimeError: half way"):
            run(model, seed=SEED)
    else:
        with pytest.raises(KeyboardInterrupt):
            run(model, seed=SEED)
    assert bits(model) == before


@pytest.mark.parametrize("shape", [(3,), (2, 1)])
def test_a_reset_that_makes_another_kind_of_tensor_is_refused(shape: tuple[int, ...]) -> None:
    model = nn.Sequential(nn.Linear(2, 2), Rebinds(shape))
    before = bits(model)
    with pytest.raises(SchemeUnsuitable, match="makes another kind of tensor of 'weight'"):
        run(model, seed=SEED)
    assert bits(model) == before


def test_a_scheme_that_fails_in_the_middle_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model = MLP()
    before = bits(model)
    calls = 0
    normal = init.normal_

    def fails(tensor: Tensor, **arguments: Any) -> Tensor:
        nonlocal calls
        calls += 1
        normal(tensor, **arguments)
        if tensor is model.w3.weight:
            raise RuntimeError("out of memory")
        return tensor

    original = SCHEMES["normal_"]
    failing = type(original)(name="normal_", fill=fails, arguments=original.arguments)
    monkeypatch.setitem(SCHEMES, "normal_", failing)
    with pytest.raises(SchemeUnsuitable, match=r"normal_ failed at w3\.weight: out of memory"):
        run(model, scheme="normal_", seed=SEED)
    assert calls > 4
    assert bits(model) == before


def test_every_refusal_has_a_reason_and_a_hint() -> None:
    for arguments in (
        {"scheme": "xavier_normal_"},
        {"scheme": "nope_"},
        {"glob": "nothing"},
        {"scheme": "normal_", "arguments": {"x": 1}},
    ):
        with pytest.raises(ModscopeServerError) as caught:
            reinit.plan(MLP(), **arguments)  # type: ignore[arg-type]
        assert caught.value.hint
        assert caught.value.reason != "INTERNAL"
