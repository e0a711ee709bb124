"""Hooks come with the first watcher and go with the last, and are in nobody's way while they are there."""

from __future__ import annotations

import copy
import io
import threading
import warnings
from typing import Any

import pytest
import torch
from torch import nn

from modscope_server.errors import BadGlobError, BadRequest, LimitExceeded, NoMatch, UnknownDtype
from modscope_server.runtime.hooks import HookManager
from modscope_server.runtime.registry import Registry
from modscope_server.runtime.watch_spec import WatchSpec
from tests.server.capture_support import ALL, Residual, armed, drained, hook_tables, manager

__all__ = ["manager"]


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
    monkeypatch.setattr("modscope_server.runtime.captured.reduced_later", broken)
    armed(manager, model)
    for _ in range(5):
        model(torch.ones(1, 2))
    assert len(caplog.records) == 3
    assert hook_tables(model) == [{}]


def test_a_watch_that_ends_in_mid_call_hears_no_more_of_it(manager: HookManager) -> None:
    heard: list[str] = []
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    spec = WatchSpec(kinds=ALL, payload="none")
    first = manager.watch(Registry({"model": model}).get(), spec, lambda draft: heard.append(draft.hook))
    other = armed(manager, model, kinds=("forward",))

    def stop(*args: Any) -> None:
        manager.stop(first.subscription.id)

    stops = model[1].register_forward_hook(stop)
    output = model(torch.ones(1, 2, requires_grad=True))
    heard.clear()
    output.sum().backward()
    assert heard == []
    assert {event.path for event in drained(other)} == {"", "0", "1"}
    stops.remove()
    # What was open when the hooks before forward went is not held on to.
    assert all(not tap._open._calls for tap in other.taps)


def test_hooks_come_only_where_they_are_needed(manager: HookManager) -> None:
    model = nn.Linear(2, 2)
    for kinds, pre in ((("forward",), False), (("backward_pre",), False), (("backward",), True), (ALL, True)):
        watch = armed(manager, model, kinds=kinds)
        assert (len(model._forward_pre_hooks), len(model._forward_hooks)) == (int(pre), 1)
        manager.stop(watch.subscription.id)


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


def test_a_watched_model_is_traced_as_one_that_nobody_watches(manager: HookManager) -> None:
    model, x = Residual(), torch.randn(2, 3)
    twin = copy.deepcopy(model)
    watch = armed(manager, model, kinds=ALL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        traced, expected = (torch.jit.trace(one, x, check_trace=False) for one in (model, twin))
    nodes = [[node.kind() for node in one.inlined_graph.nodes()] for one in (traced, expected)]
    assert nodes[0] == nodes[1]
    assert drained(watch) == []


def test_transformations_of_torch_func_are_told_and_right(manager: HookManager) -> None:
    model, x = Residual(), torch.randn(5, 3)
    parameters = dict(model.named_parameters())

    def loss(parameters: Any, row: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = torch.func.functional_call(model, parameters, (row,))
        return out.square().sum()

    of_each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))
    expected = of_each(parameters, x)
    watches = [armed(manager, model, kinds=ALL, payload=payload) for payload in ("stats", "tensor")]
    for name, gradient in of_each(parameters, x).items():
        assert torch.equal(gradient, expected[name])
    for watch in watches:
        events = drained(watch)
        assert {event.path for event in events} == {"", "f"}
        values = [value for event in events for value in event.values if value.dtype is not None]
        assert all(value.tensor is None and "torch.func" in value.note for value in values)
        assert not any(tap.faults for tap in watch.taps)


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
        (BadRequest, {"index": "[:, x]"}),
        (BadRequest, {"payload": "none", "index": "[0]"}),
        (BadRequest, {"payload": "stats", "dtype": "float16"}),
        (BadRequest, {"payload": "tensor", "dtype": "complex64"}),
        (BadRequest, {"payload": "tensor", "dtype": "bool"}),
        (UnknownDtype, {"payload": "tensor", "dtype": "float12"}),
        (UnknownDtype, {"payload": "tensor", "dtype": "quint8"}),
    ):
        with pytest.raises(error):
            armed(manager, model, **spec)  # type: ignore[arg-type]
    assert hook_tables(model) == [{}]
    for _ in range(8):
        armed(manager, model)
    with pytest.raises(LimitExceeded):
        armed(manager, model)


def test_a_watch_that_cannot_be_put_on_leaves_nothing_behind(manager: HookManager) -> None:
    class Stubborn(nn.Linear):
        def register_forward_hook(self, *args: Any, **options: Any) -> Any:
            raise TypeError("no hooks here")

    model = nn.Sequential(nn.Linear(2, 2), Stubborn(2, 2))
    for _ in range(20):
        with pytest.raises(TypeError, match="no hooks here"):
            armed(manager, model)
    assert not any(hook_tables(model))
    watch = armed(manager, model, glob="0")
    model(torch.ones(1, 2))
    assert len(drained(watch)) == 1
