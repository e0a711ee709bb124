"""Hooks that come after compilation see what they would have seen in eager code, and then it is back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from tests.server.compiled_support import (
    ALL,
    INDUCTOR,
    Backend,
    Net,
    batch,
    compiled_step,
    drained,
    fresh_compiler,
    graphs,
    rig,
    trained,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
]


@pytest.fixture(autouse=True)
def _compiler() -> Iterator[None]:
    with fresh_compiler():
        yield


def seen_by_pytorch(model: nn.Module) -> dict[tuple[str, str], list[torch.Tensor]]:
    """What PyTorch's own hooks see, by kind and path."""
    seen: dict[tuple[str, str], list[torch.Tensor]] = {}

    def note(kind: str, path: str, *values: Any) -> None:
        flat = [item for value in values for item in (value if isinstance(value, tuple) else (value,))]
        seen.setdefault((kind, path), []).extend(item.clone() for item in flat if item is not None)

    for path, module in model.named_modules():
        module.register_forward_pre_hook(lambda m, args, p=path: note("forward_pre", p, args))
        module.register_forward_hook(lambda m, args, out, p=path: note("forward", p, out))
        module.register_full_backward_pre_hook(lambda m, go, p=path: note("backward_pre", p, go))
        module.register_full_backward_hook(lambda m, gi, go, p=path: note("backward", p, gi, go))
    return seen


def seen_by_us(events: list[Any]) -> dict[tuple[str, str], list[torch.Tensor]]:
    seen: dict[tuple[str, str], list[torch.Tensor]] = {}
    for event in events:
        for value in event.values:
            if value.dtype is not None:
                tensor = torch.frombuffer(bytearray(value.tensor.data), dtype=torch.float32).view(value.shape)
                seen.setdefault((event.hook, event.path), []).append(tensor)
    return seen


WAYS = ["a wrapper", "in place", "a whole graph", "a child in place", "a step function"]


@pytest.mark.parametrize(
    ("backend", "how"),
    [("aot_eager", how) for how in WAYS]
    + [pytest.param("inductor", how, marks=INDUCTOR) for how in WAYS[:2]],
)
def test_all_kinds_fire_after_compilation_and_the_compiled_code_is_back(backend: str, how: str) -> None:
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    compiler = Backend(backend)
    with rig(model, optimizer) as here:
        step = compiled_step(how, model, optimizer, compiler)
        step(batch(0))
        step(batch(1))
        twin = Net()
        twin.load_state_dict(model.state_dict())
        plain = trained(twin, torch.optim.SGD(twin.parameters(), lr=0.1))
        theirs = seen_by_pytorch(twin)
        made, runs = graphs(), compiler.runs
        assert made and runs
        watch = here.watch(kinds=ALL, payload="tensor")
        for seed in (2, 3):
            step(batch(seed))
            plain(batch(seed))
        assert compiler.runs == runs
        ours = seen_by_us(drained(watch))
        assert ours.keys() == theirs.keys()
        for key, tensors in theirs.items():
            assert len(ours[key]) == len(tensors)
            for one, other in zip(ours[key], tensors, strict=True):
                assert torch.allclose(one, other, atol=1e-6), key
        assert here.eager_steps.cost(watch.eager) == "eager steps: 2"
        here.stop(watch)
        step(batch(4))
        step(batch(5))
        assert compiler.runs > runs and graphs() == made
        assert drained(watch) == []


def test_steps_that_nobody_watches_run_compiled() -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    compiler = Backend("aot_eager")
    with rig(model, optimizer) as here:
        step = compiled_step("in place", model, optimizer, compiler)
        step(batch(0))
        sampled = here.watch(every=3)
        each = here.watch(start=7, stop=9)
        eager = []
        for seed in range(1, 10):
            before = compiler.runs
            step(batch(seed))
            if compiler.runs == before:
                eager.append(seed)
            # What nobody wanted to see is no sign of blindness.
            assert "blind" not in {hook.state for hook in here.hooks.states(here.registered)}
        assert eager == [3, 6, 7, 8, 9]
        assert {event.step for event in drained(sampled)} == {3, 6, 9}
        assert {event.step for event in drained(each)} == {7, 8}
        costs = [here.eager_steps.cost(watch.eager) for watch in (sampled, each)]
        assert costs == ["eager steps: 3", "eager steps: 2"]
        assert graphs() == 1


def test_a_watch_from_before_the_compilation_breaks_no_whole_graph_and_sees_its_steps() -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    compiler = Backend("aot_eager")
    with rig(model, optimizer) as here:
        watch = here.watch(kinds=ALL, every=2)
        step = compiled_step("a whole graph", model, optimizer, compiler)
        step(batch(0))
        assert graphs() == 1 and drained(watch) == []
        here.eager_steps.look()
        for seed in range(1, 5):
            step(batch(seed))
        assert {event.step for event in drained(watch)} == {2, 4}
        assert here.eager_steps.cost(watch.eager) == "eager steps: 2"
        here.stop(watch)
        runs = compiler.runs
        # What was compiled with hooks in place is guarded by them: it is compiled once more without.
        step(batch(5))
        assert compiler.runs > runs and graphs() == 2


@pytest.mark.filterwarnings("ignore:Compiled autograd")
def test_all_kinds_fire_under_compiled_autograd() -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with rig(model, optimizer) as here, torch._dynamo.config.patch(compiled_autograd=True):
        step = compiled_step("in place", model, optimizer, "aot_eager")
        step(batch(0))
        watch = here.watch(glob="first", kinds=ALL)
        step(batch(1))
        assert [event.hook for event in drained(watch)] == list(ALL)
