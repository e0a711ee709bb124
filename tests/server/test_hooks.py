"""What watches tell is what PyTorch's own hooks see, and the hooks go with the last watcher."""

from __future__ import annotations

import copy
import dataclasses
import gc
import io
import threading
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from modscope_server.errors import BadGlobError, BadRequest, LimitExceeded, NoMatch
from modscope_server.runtime.bus import HookEvent
from modscope_server.runtime.hooks import HookManager, Watch
from modscope_server.runtime.registry import Registry
from modscope_server.runtime.watch_spec import WatchSpec

ALL = ("forward_pre", "forward", "backward_pre", "backward")


@pytest.fixture
def manager() -> Iterator[HookManager]:
    hooks = HookManager(watches=8, events=1000, size=1 << 24)
    yield hooks
    hooks.stop_all("closed")


def armed(manager: HookManager, model: nn.Module, **spec: Any) -> Watch:
    return manager.watch(Registry({"model": model}).get(), WatchSpec(**spec))


def drained(watch: Watch) -> list[HookEvent]:
    return watch.subscription.drain(0, limit=10_000)


def tensor_of(value: Any) -> torch.Tensor:
    return torch.frombuffer(bytearray(value.tensor.data), dtype=getattr(torch, value.dtype)).view(value.shape)


def hook_tables(model: nn.Module) -> list[dict[str, Any]]:
    return [
        {name: OrderedDict(table) for name, table in vars(module).items() if "hooks" in name and table}
        for module in model.modules()
    ]


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.f = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.f(x)


def test_values_equal_pytorchs_own_hooks(manager: HookManager) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Residual(), nn.Tanh(), Residual())
    twin = copy.deepcopy(model)
    seen: dict[tuple[str, str], list[list[torch.Tensor | None]]] = {}

    def note(kind: str, path: str, *values: Any) -> None:
        flat = [value for group in values for value in (group if isinstance(group, tuple) else (group,))]
        copies = [None if value is None else value.detach().clone() for value in flat]
        seen.setdefault((kind, path), []).append(copies)

    for path, module in twin.named_modules():
        module.register_forward_pre_hook(lambda m, args, p=path: note("forward_pre", p, args))
        module.register_forward_hook(lambda m, args, out, p=path: note("forward", p, out))
        module.register_full_backward_pre_hook(lambda m, go, p=path: note("backward_pre", p, go))
        module.register_full_backward_hook(lambda m, gi, go, p=path: note("backward", p, gi, go))
    watch = armed(manager, model, kinds=ALL, payload="tensor")
    for seed in range(2):
        torch.manual_seed(seed)
        inputs = torch.randn(5, 3, requires_grad=True)
        model(inputs).square().sum().backward()
        torch.manual_seed(seed)
        twin(torch.randn(5, 3, requires_grad=True)).square().sum().backward()
    got: dict[tuple[str, str], list[list[torch.Tensor | None]]] = {}
    for event in drained(watch):
        tensors = [None if value.dtype is None else tensor_of(value) for value in event.values]
        got.setdefault((event.hook, event.path), []).append(tensors)
    assert got.keys() == seen.keys()
    for key, calls in seen.items():
        assert len(got[key]) == len(calls) == 2
        for mine, theirs in zip(got[key], calls, strict=True):
            for one, other in zip(mine, theirs, strict=True):
                assert (one is None) == (other is None), key
                assert one is None or other is None or torch.equal(one, other), key
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)  # type: ignore[arg-type]


def test_gradient_of_the_input_is_the_modules_share_not_the_accumulated(manager: HookManager) -> None:
    model = Residual()
    watch = armed(manager, model, glob="f", kinds=("backward",), payload="tensor")
    inputs = torch.randn(2, 3, requires_grad=True)
    model(inputs).sum().backward()
    (event,) = drained(watch)
    share = torch.ones(2, 3) @ model.f.weight
    assert [value.role for value in event.values] == ["grad_input", "grad_output"]
    assert torch.allclose(tensor_of(event.values[0]), share)
    assert torch.allclose(inputs.grad, share + 1)  # type: ignore[arg-type]


@pytest.mark.parametrize("kinds", [("backward",), ("backward_pre",), ALL])
def test_in_place_modules_train_as_without_a_watch(manager: HookManager, kinds: tuple[str, ...]) -> None:
    torch.manual_seed(0)

    class Scales(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mul_(2.0)

    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 4), Scales(), nn.Linear(4, 1))
    twin = copy.deepcopy(model)
    watch = armed(manager, model, kinds=kinds)
    inputs = torch.randn(6, 3)
    model(inputs).sum().backward()
    twin(inputs).sum().backward()
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)  # type: ignore[arg-type]
    events = {event.path: event for event in drained(watch) if event.hook == "backward"}
    if "backward" in kinds:
        for path in ("1", "3"):
            (value,) = (value for value in events[path].values if value.role == "grad_input")
            assert value.dtype is None
            assert "in-place" in value.note


class Pair(NamedTuple):
    first: torch.Tensor
    second: torch.Tensor | None


@dataclasses.dataclass
class Record:
    logits: torch.Tensor
    past: tuple[torch.Tensor, tuple[torch.Tensor, None]]


class Structured(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.kind = kind

    def forward(self, x: torch.Tensor, *, mask: torch.Tensor | None = None) -> Any:
        y = self.linear(x)
        if mask is not None:
            y = y * mask
        return {
            "tensor": y,
            "tuple": (y, y + 1),
            "list": [y, None],
            "dict": {"a": y, "b": {"c": y}},
            "named": Pair(y, None),
            "record": Record(y, (y, (y, None))),
            "none": None,
        }[self.kind]


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        ("tensor", [""]),
        ("tuple", ["0", "1"]),
        ("list", ["0", "1"]),
        ("dict", ["a", "b.c"]),
        ("named", None),
        ("record", ["logits", "past.0", "past.1.0", "past.1.1"]),
        ("none", [""]),
    ],
)
def test_outputs_in_any_structure(manager: HookManager, kind: str, keys: list[str] | None) -> None:
    model = Structured(kind)
    watch = armed(manager, model, glob="", kinds=ALL)
    output = model(torch.ones(1, 2), mask=torch.ones(1, 2))
    tensor = output if kind == "tensor" else next(iter(_tensors(output)), None)
    if tensor is not None:
        tensor.sum().backward()
    events = {event.hook: event for event in drained(watch)}
    assert [value.key for value in events["forward_pre"].values] == ["0", "mask"]
    if keys is not None:
        assert [value.key for value in events["forward"].values] == keys
    if kind == "none":
        assert events["forward"].values[0].dtype is None
        assert set(events) == {"forward_pre", "forward"}
    else:
        assert set(events) == set(ALL)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
    elif dataclasses.is_dataclass(value):
        yield value.logits  # type: ignore[attr-defined]


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(2, 2)
        self.b = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.a(x), self.b(x)


def test_an_unused_output_gets_no_gradient_and_the_event_still_comes(manager: HookManager) -> None:
    model = TwoHeads()
    watch = armed(manager, model, glob="", kinds=("backward", "backward_pre"), payload="none")
    model(torch.ones(1, 2, requires_grad=True))[1].sum().backward()
    events = {event.hook: event for event in drained(watch)}
    outputs = [value for value in events["backward"].values if value.role == "grad_output"]
    assert [value.dtype for value in outputs] == [None, "float32"]
    assert [value.dtype for value in events["backward_pre"].values] == [None, "float32"]


def test_a_graph_walked_twice_gives_two_events(manager: HookManager) -> None:
    model = nn.Linear(2, 2)
    watch = armed(manager, model, kinds=("backward",), payload="none")
    loss = model(torch.ones(1, 2, requires_grad=True)).sum()
    loss.backward(retain_graph=True)
    loss.backward()
    assert [event.hook for event in drained(watch)] == ["backward", "backward"]


def test_hooks_exist_only_while_somebody_watches(manager: HookManager) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    model[0].register_forward_hook(lambda *rest: None)
    before = hook_tables(model)
    first = armed(manager, model, kinds=ALL)
    during = hook_tables(model)
    second = armed(manager, model, glob="0", kinds=("forward",))
    assert hook_tables(model) == during != before
    for _ in range(3):
        model(torch.ones(1, 2))
    assert [event.call for event in drained(second)] == [0, 1, 2]
    manager.stop(first.subscription.id)
    model(torch.ones(1, 2))
    assert len(drained(second)) == 1
    assert [event.hook for event in drained(first)].count("forward") == 9
    manager.stop(second.subscription.id)
    manager.stop(second.subscription.id)
    assert hook_tables(model) == before
    gc.collect()


def test_calls_are_numbered_within_a_step_and_every_skips_steps(manager: HookManager) -> None:
    model = nn.Linear(2, 2)
    registry = Registry({"model": model})
    step = 0
    registry.count_steps_with(lambda: step)
    watch = manager.watch(registry.get(), WatchSpec(every=2, payload="none"))
    for step in range(5):  # noqa: B007 - read by the registry
        model(torch.ones(1, 2))
        model(torch.ones(1, 2))
    assert [(event.step, event.call) for event in drained(watch)] == [
        (s, c) for s in (0, 2, 4) for c in (0, 1)
    ]


def test_recomputation_under_checkpointing_is_told_apart(manager: HookManager) -> None:
    inner = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
    watch = armed(manager, inner, glob="0", kinds=("forward", "backward"), payload="none")
    checkpoint(inner, torch.ones(1, 2, requires_grad=True), use_reentrant=False).sum().backward()
    events = [(event.hook, event.recompute) for event in drained(watch)]
    assert events == [("forward", False), ("forward", True), ("backward", False)]


def test_statistics_are_of_the_value_before_a_later_in_place_change(manager: HookManager) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(inplace=True))
    with torch.no_grad():
        model[0].weight.fill_(-1.0)
        model[0].bias.zero_()
    watch = armed(manager, model, glob="0")
    model(torch.ones(1, 2))
    (event,) = drained(watch)
    assert event.values[0].stats is not None
    assert (event.values[0].stats.min, event.values[0].stats.max) == (-2.0, -2.0)


def test_a_watch_keeps_no_graph_and_no_tensor_alive(manager: HookManager) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    armed(manager, model, kinds=ALL)
    inputs = torch.ones(1, 2, requires_grad=True)
    output = model(inputs)
    node = weakref.ref(inputs), weakref.ref(output)
    gc.disable()
    try:
        del inputs, output
        assert [ref() for ref in node] == [None, None]
    finally:
        gc.enable()


def test_copies_and_pickles_of_a_watched_model_are_silent_and_work(manager: HookManager) -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    watch = armed(manager, model, kinds=ALL)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for twin in (copy.deepcopy(model), torch.load(buffer, weights_only=False)):
        twin(torch.ones(1, 2, requires_grad=True)).sum().backward()
    assert drained(watch) == []


def test_a_fault_of_ours_disables_itself_and_training_goes_on(
    manager: HookManager, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*args: Any) -> None:
        raise RuntimeError("ours")

    model = nn.Linear(2, 2)
    monkeypatch.setattr("modscope_server.runtime.captured.reduce", broken)
    armed(manager, model)
    for _ in range(5):
        model(torch.ones(1, 2))
    assert len(caplog.records) == 3
    assert hook_tables(model) == [{}]


def test_scripted_modules_are_told_not_to_fire(manager: HookManager) -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        model.add_module("traced", torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)))
    watch = armed(manager, model)
    assert "traced" in watch.subscription.notes[0]
    model(torch.ones(1, 2))
    assert {event.path for event in drained(watch)} == {"", "0"}


def test_hooks_under_a_compiled_whole_graph_do_not_break_it(manager: HookManager) -> None:
    torch._dynamo.reset()
    model = Residual()
    armed(manager, model, kinds=ALL)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    inputs = torch.ones(1, 3)
    assert torch.equal(compiled(inputs), inputs + model.f(inputs))


def test_arming_and_disarming_beside_a_running_forward_never_breaks_it(manager: HookManager) -> None:
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(8)))
    stop, errors = threading.Event(), []

    def forwards() -> None:
        try:
            while not stop.is_set():
                model(torch.ones(1, 2)).sum().backward()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=forwards)
    thread.start()
    for _ in range(100):
        manager.stop(armed(manager, model, kinds=ALL).subscription.id)
    stop.set()
    thread.join(20)
    assert errors == []
    assert all(table == {} for table in hook_tables(model))


def test_refusals(manager: HookManager) -> None:
    model = nn.Linear(2, 2)
    for error, spec in (
        (NoMatch, {"glob": "nothing.*"}),
        (NoMatch, {"type": "Embedding"}),
        (BadGlobError, {"glob": "["}),
        (BadRequest, {"kinds": ("sideways",)}),
        (BadRequest, {"payload": "everything"}),
        (BadRequest, {"every": 0}),
        (BadRequest, {"sample": -1}),
    ):
        with pytest.raises(error):
            armed(manager, model, **spec)  # type: ignore[arg-type]
    assert hook_tables(model) == [{}]
    for _ in range(8):
        armed(manager, model)
    with pytest.raises(LimitExceeded):
        armed(manager, model)
