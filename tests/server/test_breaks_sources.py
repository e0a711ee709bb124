"""What conditions ask for, beside what PyTorch gives for the same tensors joined into one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from modscope_server.inspection.statistics import pool, reduce
from modscope_server.runtime.breaks import passing
from modscope_server.runtime.breaks.parser import STATISTICS, parse
from modscope_server.runtime.breaks.sources import Sources
from modscope_server.runtime.breaks.syntax import Statistic, leaves
from modscope_server.runtime.hooks import HookManager
from modscope_server.runtime.metrics import Metrics
from modscope_server.runtime.registry import Registry

_values = st.floats(width=32, min_value=-1e6, max_value=1e6, allow_subnormal=False)
_odd = st.sampled_from([0.0, math.inf, -math.inf, math.nan])
_tensors = st.lists(st.lists(_values | _odd, max_size=8), max_size=5)


def expected(tensors: Sequence[torch.Tensor]) -> dict[str, float]:
    """The statistics of all elements together, in float64; over the finite ones."""
    joined = torch.cat([tensor.detach().double().reshape(-1) for tensor in tensors])
    finite = joined[joined.isfinite()]
    counts = {
        "count": len(joined),
        "zeros": int((joined == 0).sum()),
        "nan": int(joined.isnan().sum()),
        "inf": int(joined.isinf().sum()),
    }
    if not len(finite):
        return {**counts, **dict.fromkeys(("mean", "std", "min", "max", "norm"), math.nan)}
    return {
        **counts,
        "mean": finite.mean().item(),
        "std": finite.std(correction=0).item(),
        "min": finite.min().item(),
        "max": finite.max().item(),
        "norm": finite.norm().item(),
    }


@given(_tensors)
def test_pooled_reductions_are_those_of_one_tensor(lists: list[list[float]]) -> None:
    tensors = [torch.tensor(values, dtype=torch.float32) for values in lists]
    pooled = pool([pool([reduce(tensor)]) for tensor in tensors])
    record = pooled.resolve()
    assert pool(map(reduce, tensors)).resolve() == record
    wanted = expected([torch.empty(0), *tensors])
    scale = max(1.0, wanted["norm"] if wanted["norm"] == wanted["norm"] else 1.0)
    for name, value in wanted.items():
        found = getattr(record, name)
        if math.isnan(value):
            assert found is None, name
        else:
            assert found == pytest.approx(value, rel=1e-6, abs=1e-6 * scale), name


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.last = nn.Linear(4, 3)
        self.tied = nn.Linear(4, 3)
        self.tied.weight = self.last.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.last(torch.tanh(self.first(x))) + self.tied(torch.tanh(self.first(x)))
        return y


class Place:
    """A model under sources, as a server has it, and a loop that tells of its boundaries."""

    def __init__(self, *models: nn.Module, names: Sequence[str] = ("net", "other")) -> None:
        torch.manual_seed(0)
        self.models = dict(zip(names, models, strict=False))
        self.metrics = Metrics()
        self.serving = False
        self.hooks = HookManager(watches=64, events=64, size=1 << 20)
        self.sources = Sources(Registry(self.models), self.metrics, self.hooks, lambda: self.serving)

    def need(self, *texts: str) -> None:
        self.sources.need([parse(f"{text} > 0") for text in texts])

    def number(self, text: str) -> float | None:
        (statistic, _) = leaves(parse(f"{text} > 0"))
        assert isinstance(statistic, Statistic)
        return self.sources.statistic(statistic)

    def numbers(self, text: str) -> dict[str, float | None]:
        """All statistics of what NAME stands for in the text."""
        return {name: self.number(text.replace("NAME", name)) for name in STATISTICS}


@pytest.fixture
def place() -> Iterator[Place]:
    place = Place(Net())
    yield place
    place.sources.need([])
    assert all(not module._forward_hooks for model in place.models.values() for module in model.modules())
    assert all(not module._forward_pre_hooks for m in place.models.values() for module in m.modules())


def same(found: dict[str, float | None], tensors: Sequence[torch.Tensor]) -> None:
    assert found == {name: pytest.approx(value, nan_ok=True) for name, value in expected(tensors).items()}


@pytest.mark.parametrize(
    ("selector", "chosen"),
    [
        ("*", lambda net: list(net.parameters())),
        ("first", lambda net: list(net.first.parameters())),
        ("*.bias", lambda net: [net.first.bias, net.last.bias, net.tied.bias]),
        ("tied.weight", lambda net: [net.last.weight]),
        ("net/{first,last}.weight", lambda net: [net.first.weight, net.last.weight]),
    ],
)
def test_values_of_parameters(
    place: Place, selector: str, chosen: Callable[[nn.Module], list[torch.Tensor]]
) -> None:
    net = place.models["net"]
    with torch.no_grad():
        net.get_parameter("first.weight")[0, :2] = torch.tensor([math.nan, -math.inf])
    place.need(f"norm({selector})")
    place.sources.begin(1, "optimizer")
    same(place.numbers(f"NAME({selector})"), chosen(net))


def test_a_parameter_that_was_replaced_is_seen_at_the_next_boundary(place: Place) -> None:
    net = place.models["net"]
    place.need("norm(first.weight)")
    place.sources.begin(1, "optimizer")
    assert place.number("norm(first.weight)") == pytest.approx(
        net.get_parameter("first.weight").norm().item()
    )
    net.get_submodule("first").weight = nn.Parameter(torch.full((4, 3), 2.0))
    place.sources.begin(2, "optimizer")
    assert place.number("max(first.weight)") == 2.0


def test_a_number_is_that_of_its_boundary_until_the_next(place: Place) -> None:
    weight = place.models["net"].get_parameter("first.weight")
    place.need("max(first.weight)")
    place.sources.begin(1, "optimizer")
    before = place.number("max(first.weight)")
    with torch.no_grad():
        weight.fill_(7)
    assert place.number("max(first.weight)") == before
    place.sources.begin(2, "optimizer")
    assert place.number("max(first.weight)") == 7.0


def test_where_nothing_is_finite_numbers_are_nan(place: Place) -> None:
    with torch.no_grad():
        place.models["net"].get_parameter("first.bias").fill_(math.nan)
    place.need("norm(first.bias)")
    place.sources.begin(1, "optimizer")
    assert math.isnan(place.number("norm(first.bias)") or 0)
    assert place.number("nan(first.bias)") == 4


def test_what_is_not_there_is_unknown_and_told(place: Place) -> None:
    texts = ("norm(nothing.*)", "grad.norm(first)", "nan(forward:nothing)", "nan(forward:first)")
    place.need(*texts)
    place.sources.begin(1, "optimizer")
    assert [place.number(text) for text in texts] == [None] * 4
    told = [place.sources.notes(parse(f"{text} > loss")) for text in texts]
    assert [notes[0] for notes in told] == [
        "no parameter matches 'nothing.*'",
        "there was nothing for grad.norm(first) when it was last looked at",
        "no module matched 'nothing' when it was set",
        "there was nothing for nan(forward:first) when it was last looked at",
    ]
    assert all("no metric 'loss'" in notes[1] for notes in told)
    place.metrics.report(1, {"loss": 0.5})
    place.models["net"](torch.ones(1, 3)).sum().backward()
    place.sources.begin(2, "optimizer")
    assert place.number("nan(forward:first)") == 0
    assert place.number("grad.norm(first)") is not None
    assert place.sources.metric("loss") == 0.5
    assert not place.sources.notes(parse("nan(forward:first) > loss and grad.max(first) > 0"))


def test_gradients_are_those_that_the_optimizer_used(place: Place) -> None:
    net = place.models["net"]
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    place.need("grad.norm(*)", "grad.norm(last)")
    for step in (1, 2):
        net(torch.randn(5, 3)).square().sum().backward()
        used = {name: parameter.grad.clone() for name, parameter in net.named_parameters()}
        optimizer.step()
        place.sources.updated(step, optimizer)
        optimizer.zero_grad(set_to_none=step == 1)
        place.sources.begin(step, "forward")
        same(place.numbers("grad.NAME(*)"), list(used.values()))
        same(place.numbers("grad.NAME(last)"), [used["last.weight"], used["last.bias"]])
    place.sources.begin(3, "forward")
    assert place.number("grad.norm(*)") is None, "zeros that were left by zero_grad are no gradients"


def test_gradients_of_two_optimizers_are_those_of_each_at_its_step(place: Place) -> None:
    net = place.models["net"]
    lower = torch.optim.SGD(net.get_submodule("first").parameters(), lr=0.1)
    upper = torch.optim.SGD([*net.get_submodule("last").parameters()], lr=0.1)
    place.need("grad.norm(*)")
    used = []
    for optimizer in (lower, upper):
        net(torch.randn(5, 3)).sum().backward()
        used += [parameter.grad.clone() for group in optimizer.param_groups for parameter in group["params"]]
        optimizer.step()
        place.sources.updated(1, optimizer)
    place.sources.begin(1, "optimizer")
    left = net.get_parameter("tied.bias").grad
    assert left is not None
    same(place.numbers("grad.NAME(*)"), [*used, left])


def test_what_passes_hooks_is_all_of_it_since_the_last_boundary(place: Place) -> None:
    net = place.models["net"]
    texts = {kind: f"NAME({kind}:first)" for kind in ("forward_pre", "forward", "backward_pre", "backward")}
    place.need(*(text.replace("NAME", "nan") for text in texts.values()))
    seen: dict[str, list[torch.Tensor]] = {}
    first = net.get_submodule("first")

    def forward(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        seen.setdefault("forward_pre", []).append(inputs[0].detach())
        seen.setdefault("forward", []).append(output.detach())

    def backward(module: nn.Module, inputs: Any, outputs: Any) -> None:
        seen.setdefault("backward", []).append(inputs[0])
        seen.setdefault("backward_pre", []).append(outputs[0])

    handles = [first.register_forward_hook(forward), first.register_full_backward_hook(backward)]
    for step in (1, 2):
        seen.clear()
        for _ in range(3):
            net(torch.randn(2, 3, requires_grad=True)).square().sum().backward()
        place.sources.begin(step, "optimizer")
        for kind, text in texts.items():
            same(place.numbers(text), seen[kind])
        with torch.no_grad():
            net(torch.randn(2, 3))
        place.sources.begin(step, "mark")
        same(place.numbers(texts["forward"]), seen["forward"])
    for handle in handles:
        handle.remove()


def test_forwards_for_requests_are_no_part_of_it(place: Place) -> None:
    net = place.models["net"]
    place.need("count(forward:last)")
    net(torch.ones(2, 3))
    place.serving = True
    net(torch.full((2, 3), math.nan))
    place.serving = False
    place.sources.begin(1, "optimizer")
    same(
        place.numbers("NAME(forward:last)"),
        [net.get_submodule("last")(torch.tanh(net.first(torch.ones(2, 3))))],
    )


def test_a_recomputed_forward_counts_once(place: Place) -> None:
    net = place.models["net"]
    place.need("count(forward:first)", "count(backward_pre:first)")
    y = torch.utils.checkpoint.checkpoint(net, torch.ones(2, 3), use_reentrant=False)
    y.sum().backward()
    place.sources.begin(1, "optimizer")
    assert place.number("count(forward:first)") == 2 * 2 * 4
    assert place.number("count(backward_pre:first)") == 2 * 2 * 4


def test_a_long_evaluation_is_pooled(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passing, "_POOL_AT", 4)
    net = place.models["net"]
    place.need("std(forward:tied)")
    outputs: list[torch.Tensor] = []
    handle = net.get_submodule("tied").register_forward_hook(lambda m, i, output: outputs.append(output))
    for _ in range(11):
        net(torch.randn(2, 3))
    handle.remove()
    place.sources.begin(1, "optimizer")
    same(place.numbers("NAME(forward:tied)"), outputs)


def test_several_models_are_taken_together_or_by_name() -> None:
    place = Place(nn.Linear(2, 2), nn.Linear(2, 2), names=("gan/generator", "gan"))
    one, two = place.models.values()
    place.need("norm(*)", "norm(gan/*)", "norm(gan/generator/*)", "max(forward:gan/*)")
    one(torch.ones(1, 2))
    output = two(torch.ones(1, 2))
    place.sources.begin(1, "optimizer")
    same(place.numbers("NAME(*)"), [*one.parameters(), *two.parameters()])
    same(place.numbers("NAME(gan/*)"), list(two.parameters()))
    same(place.numbers("NAME(gan/generator/*)"), list(one.parameters()))
    same(place.numbers("NAME(forward:gan/*)"), [output])
    place.sources.need([])


def test_tensors_without_elements_to_read_are_left_out(place: Place) -> None:
    net = place.models["net"]
    net.get_submodule("first").weight = nn.Parameter(torch.empty(4, 3, device="meta"))
    sparse = nn.Embedding(4, 3, sparse=True)
    net.add_module("sparse", sparse)
    sparse(torch.tensor([1])).sum().backward()
    place.need("count(*)", "count(first.weight)", "grad.count(sparse)")
    place.sources.begin(1, "optimizer")
    assert place.number("count(first.weight)") is None
    assert place.number("grad.count(sparse)") is None
    assert place.number("count(*)") == sum(p.numel() for p in net.parameters() if p.device.type != "meta")
