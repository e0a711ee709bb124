"""Reinitialisation: bit-equal to nn.Module.apply, checked whole before it begins, undone where it fails."""

from __future__ import annotations

import inspect
import math
import random
from collections.abc import Callable
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
    LimitExceeded,
    ModscopeServerError,
    NoMatch,
    NotFinite,
    NotMaterialized,
    SchemeUnsuitable,
    UnknownScheme,
)
from modscope_server.inspection.backup import same_bits
from modscope_server.reinit import SCHEMES
from modscope_server.reinit.order import applied
from tests.models import MLP, WRAPPED, ZOO, Entry, unreadable

SEED = 7
REAL = [entry for entry in ZOO.values() if entry.name not in ("lazy", "meta")]
ARGUMENTS: dict[str, dict[str, Any]] = {
    "uniform_": {"a": -0.5, "b": 2},
    "normal_": {"mean": 0.25, "std": 0.02},
    "trunc_normal_": {"std": 0.5, "a": -0.1, "b": 0.3},
    "constant_": {"val": 3},
    "dirac_": {"groups": 2},
    "xavier_uniform_": {"gain": 2.0},
    "xavier_normal_": {"gain": 0.5},
    "kaiming_uniform_": {"a": math.sqrt(5)},
    "kaiming_normal_": {"mode": "fan_out", "nonlinearity": "relu"},
    "orthogonal_": {"gain": 1.5},
    "sparse_": {"sparsity": 0.3, "std": 1},
}


def bits(model: nn.Module) -> list[tuple[int, bytes]]:
    """Identity and bytes of every parameter and buffer."""
    tensors = [*model.parameters(), *model.buffers()]
    return [
        (id(t), bytes(t.detach().clone().contiguous().reshape(-1).view(torch.uint8).tolist()))
        for t in tensors
    ]


def random_state() -> int:
    legacy: Any = np.random.get_state()
    states = (random.getstate(), legacy[1].tobytes(), legacy[2:], bytes(torch.get_rng_state().tolist()))
    return hash(states)


def by_hand(model: nn.Module, fn: Callable[[nn.Module], Any]) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model.apply(fn)


def run(model: nn.Module, *args: Any, **kwargs: Any) -> reinit.Plan:
    before = random_state()
    try:
        plan = reinit.plan(model, *args, **kwargs)
        reinit.apply(plan)
        return plan
    finally:
        assert random_state() == before


def agree(model: nn.Module, twin: nn.Module) -> bool:
    pairs = zip([*model.parameters(), *model.buffers()], [*twin.parameters(), *twin.buffers()], strict=True)
    return all(same_bits(one, other) for one, other in pairs)


@pytest.mark.parametrize("entry", [*REAL, *WRAPPED.values()], ids=lambda entry: entry.name)
def test_seeded_it_is_manual_seed_and_apply(entry: Entry) -> None:
    model, twin = entry.build(), entry.build()
    identities = [id(parameter) for parameter in model.parameters()]
    run(model, scheme="normal_", arguments={"mean": 0.0, "std": 0.02}, seed=SEED)

    def fill(module: nn.Module) -> None:
        for parameter in module.parameters(recurse=False):
            init.normal_(parameter, mean=0.0, std=0.02)

    by_hand(twin, fill)
    assert agree(model, twin)
    assert [id(parameter) for parameter in model.parameters()] == identities


@pytest.mark.parametrize("entry", REAL, ids=lambda entry: entry.name)
def test_all_linear_weights_by_one_call(entry: Entry) -> None:
    """The tour's apply(init_weights): biases and all else untouched."""
    model, twin = entry.build(), entry.build()
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    computed = [module for module in linears if "weight" not in module._parameters]
    if computed or not linears:
        with pytest.raises(SchemeUnsuitable if computed else NoMatch):
            reinit.plan(model, type="Linear", parameter="weight", scheme="normal_")
        return
    run(model, type="Linear", parameter="weight", scheme="normal_", arguments={"std": 0.02}, seed=SEED)

    def init_weights(module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            init.normal_(module.weight, std=0.02)

    by_hand(twin, init_weights)
    assert agree(model, twin)


@pytest.mark.parametrize("name", ["mlp", "head", "tied", "shared", "buffers", "containers", "bf16", "frozen"])
@pytest.mark.parametrize("type_name", ["Linear", "torch.nn.BatchNorm2d", "Embedding", "Conv2d"])
def test_reset_parameters_is_apply_of_the_modules_own(name: str, type_name: str) -> None:
    model, twin = ZOO[name].build(), ZOO[name].build()
    cls = getattr(nn, type_name.rpartition(".")[2])
    for one in (model, twin):
        for module in one.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                module.running_mean.fill_(9)
    if not any(isinstance(module, cls) for module in model.modules()):
        with pytest.raises(NoMatch, match=f"no module matches glob '\\*' and type '{type_name}'"):
            reinit.plan(model, type=type_name)
        return
    run(model, type=type_name, seed=SEED)
    by_hand(twin, lambda module: module.reset_parameters() if isinstance(module, cls) else None)
    assert agree(model, twin)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_equals_its_function(scheme: str) -> None:
    shapes: dict[str, list[tuple[int, ...]]] = {
        "dirac_": [(4, 3, 3), (4, 2, 3, 3), (6, 6, 3, 3, 3)],
        "eye_": [(3, 5)],
        "sparse_": [(6, 4)],
    }
    plain = [(4, 3), (2, 3, 4), (2, 0, 3)] if SCHEMES[scheme].dimensions[0] else [(), (5,), (0,), (4, 3)]
    model, twin = (
        nn.ParameterList([torch.zeros(shape) for shape in shapes.get(scheme, plain)]) for _ in "12"
    )
    for arguments in ({}, ARGUMENTS.get(scheme, {})):
        if scheme in ("constant_", "sparse_") and not arguments:
            continue
        plan = run(model, scheme=scheme, arguments=arguments, seed=SEED)
        by_hand(
            twin,
            lambda module, arguments=arguments: [  # type: ignore[misc]
                getattr(init, scheme)(parameter, **arguments)
                for parameter in module.parameters(recurse=False)
                if parameter.numel()
            ],
        )
        assert agree(model, twin)
        assert plan.paths == tuple(name for name, _ in model.named_parameters())


def test_the_table_is_that_of_torch() -> None:
    for name, scheme in SCHEMES.items():
        signature = inspect.signature(getattr(init, name))
        takes = {n: p for n, p in signature.parameters.items() if n not in ("tensor", "generator")}
        assert set(scheme.arguments) == set(takes), name
        for argument, parameter in takes.items():
            assert scheme.arguments[argument].required == (parameter.default is inspect.Parameter.empty)
    in_place = {n for n in vars(init) if n.endswith("_") and not n.startswith("_")}
    assert set(SCHEMES) == in_place


def test_the_order_is_applys() -> None:
    for entry in (*ZOO.values(), *WRAPPED.values()):
        model = entry.build()
        visited: list[nn.Module] = []
        model.apply(visited.append)
        assert [module for _, module in applied(model)] == visited
    assert [path for path, _ in applied(ZOO["head"].build())] == ["mlp.w1", "mlp.w2", "mlp.w3", "mlp", ""]
    assert [path for path, _ in applied(WRAPPED["parallel"].build())][:3] == ["0.w1", "0.w2", "0.w3"]
    deep = nn.Linear(1, 1)
    for _ in range(5000):
        deep = nn.Sequential(deep)  # type: ignore[assignment]
    assert len(applied(deep)) == 5001
    shared: nn.Module = nn.Linear(1, 1)
    for _ in range(64):
        above = nn.Module()
        above.a = nn.Sequential(shared)
        above.b = nn.Sequential(shared)
        shared = above
    with pytest.raises(LimitExceeded, match="more than 1,000,000 times"):
        applied(shared)


def test_a_plan_changes_nothing_and_tells_the_paths_in_order() -> None:
    model = ZOO["tied"].build()
    before = bits(model)
    plan = reinit.plan(model, scheme="normal_", seed=SEED)
    assert plan.paths == ("embed.weight", "body.weight", "body.bias", "decode.bias")
    assert bits(model) == before
    assert reinit.plan(model, type="Linear", scheme="zeros_").paths == (
        "body.weight",
        "body.bias",
        "decode.weight",
        "decode.bias",
    )
    assert reinit.plan(model, "mirror.decode", scheme="zeros_").paths == ("mirror.decode.weight",)
    assert reinit.plan(MLP(), "w[12]", parameter="bias", scheme="zeros_").paths == ("w1.bias", "w2.bias")
    head = ZOO["head"].build()
    assert reinit.plan(head, scheme="zeros_").paths[-2:] == ("w", "b")
    assert reinit.plan(head, "", scheme="zeros_").paths == ("w", "b")
    assert reinit.plan(MLP(), "w2").paths == ("w2.weight", "w2.bias")
    assert reinit.plan(WRAPPED["parallel"].build(), "0.w2").paths == ("0.w2.weight", "0.w2.bias")


def test_without_a_seed_each_run_draws_anew() -> None:
    model = MLP(4, 4, 4, 4)
    seen = set()
    for _ in range(3):
        run(model, scheme="normal_")
        seen.add(model.w1.weight[0, 0].item())
    assert len(seen) == 3


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


def test_a_module_without_reset_parameters_is_named() -> None:
    head = ZOO["head"].build()
    before = bits(head)
    with pytest.raises(SchemeUnsuitable, match=r"'' \(Head\): it has parameters of its own but no reset_par"):
        reinit.plan(head)
    assert bits(head) == before
    run(head, type="Linear", seed=SEED)
    attention = nn.Sequential(nn.MultiheadAttention(4, 2))
    with pytest.raises(SchemeUnsuitable, match=r"'0' \(MultiheadAttention\)"):
        reinit.plan(attention)

    class Needs(nn.Linear):
        def reset_parameters(self, how: str = "", *, scale: float | None = None) -> None:
            super().reset_parameters()

    class NeedsMore(nn.Linear):
        def __init__(self) -> None:
            nn.Module.__init__(self)
            self.weight = nn.Parameter(torch.ones(1))

        def reset_parameters(self, how: str) -> None:  # type: ignore[override]
            raise AssertionError

    run(Needs(1, 1))
    with pytest.raises(SchemeUnsuitable, match="cannot be called without arguments: missing a required"):
        reinit.plan(nn.Sequential(NeedsMore()))


def test_modules_without_parameters_are_passed_over_or_use_their_own_method() -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(2, 2)

        def reset_parameters(self) -> None:
            init.constant_(self.inner.weight, 4)

    model = nn.Sequential(Holder(), nn.ReLU(), nn.BatchNorm1d(2, affine=False))
    twin = nn.Sequential(Holder(), nn.ReLU(), nn.BatchNorm1d(2, affine=False))
    plan = run(model, seed=SEED)
    by_hand(twin, lambda module: module.reset_parameters() if hasattr(module, "reset_parameters") else None)
    assert plan.paths == ("0.inner.weight", "0.inner.bias")
    assert agree(model, twin)


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


def test_default_initialisation_is_uniform_in_the_root_of_one_by_fan_in() -> None:
    """The tour's item 6: U(-sqrt(k), sqrt(k)), k = 1 / in_features."""
    model = nn.Sequential(nn.Linear(400, 500))
    run(model, scheme="zeros_")
    run(model, seed=SEED)
    bound = math.sqrt(1 / 400)
    weight = model[0].weight
    assert weight.abs().max() <= bound
    assert weight.abs().max() > 0.999 * bound
    assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.01)
    assert weight.mean().item() == pytest.approx(0, abs=bound * 0.01)


def test_the_optimizer_goes_on_with_the_same_tensors() -> None:
    model = MLP()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run(model, scheme="ones_")
    model(torch.ones(2, 1)).sum().backward()
    optimizer.step()
    assert not (model.w1.weight == 1).all()


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
