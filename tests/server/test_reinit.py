"""Reinitialisation: bit-equal to nn.Module.apply, checked whole before it begins, undone where it fails."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
from torch import nn
from torch.nn import init

from modscope_server import reinit
from modscope_server.errors import (
    NoMatch,
    SchemeUnsuitable,
)
from modscope_server.reinit import SCHEMES
from modscope_server.reinit.order import applied
from tests.models import MLP, WRAPPED, ZOO, Entry
from tests.server.reinit_support import ARGUMENTS, SEED, Seen, agree, bits, by_hand, run

REAL = [entry for entry in ZOO.values() if entry.name not in ("lazy", "meta")]


@pytest.mark.parametrize("entry", [*REAL, *WRAPPED.values()], ids=lambda entry: entry.name)
def test_seeded_it_is_manual_seed_and_apply(entry: Entry) -> None:
    model, twin = entry.build(), entry.build()
    identities = [id(parameter) for parameter in model.parameters()]
    run(model, scheme="normal_", arguments={"mean": 0.0, "std": 0.02}, seed=SEED)

    seen = Seen()

    def fill(module: nn.Module) -> None:
        for parameter in seen.new(module.parameters(recurse=False)):
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

    seen = Seen()

    def init_weights(module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            for weight in seen.new([module.weight]):
                init.normal_(weight, std=0.02)

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
    seen = Seen()
    by_hand(twin, lambda module: seen.reset(module) if isinstance(module, cls) else None)
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
        assert [module for _, module in applied(model)] == list(dict.fromkeys(visited))
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
    assert len(applied(shared)) == 1 + 64 * 3


def test_a_plan_changes_nothing_and_tells_the_paths_in_order() -> None:
    model = ZOO["tied"].build()
    before = bits(model)
    plan = reinit.plan(model, scheme="normal_", seed=SEED)
    tied = ("embed.weight", "decode.weight", "mirror.decode.weight")
    assert plan.paths == (*tied, "body.weight", "body.bias", "decode.bias")
    assert bits(model) == before
    assert reinit.plan(model, type="Linear", scheme="zeros_").paths == (
        "body.weight",
        "body.bias",
        "decode.weight",
        "embed.weight",
        "mirror.decode.weight",
        "decode.bias",
    )
    alone = reinit.plan(model, "mirror.decode", scheme="zeros_").paths
    assert alone == ("mirror.decode.weight", "embed.weight", "decode.weight")
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
