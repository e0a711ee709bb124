"""Hooks that come after compilation see what they would have seen in eager code, and then it is back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from tests.server.compiled_support import ALL, INDUCTOR, Backend, drained, graphs, rig, stance
from tests.server.rpc import until

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
]


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    import torch._dynamo

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    assert stance() == "default"


class Layer(nn.Module):
    """One of torch's own classes would not be compiled by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) * 2


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = Layer()
        self.second = nn.Linear(4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x).tanh())


Step = Callable[[torch.Tensor], Any]


def trained(call: Callable[..., Any], optimizer: torch.optim.Optimizer) -> Step:
    def step(x: torch.Tensor) -> torch.Tensor:
        optimizer.zero_grad()
        loss: torch.Tensor = call(x).square().sum()
        loss.backward()
        optimizer.step()
        return loss

    return step


def compiled_step(how: str, model: nn.Module, optimizer: torch.optim.Optimizer, backend: Any) -> Step:
    """A step of training in which the model is compiled in one of the ways in which people do it."""
    if how == "a wrapper":
        return trained(torch.compile(model, backend=backend), optimizer)
    if how == "a whole graph":
        return trained(torch.compile(model, backend=backend, fullgraph=True), optimizer)
    if how == "in place":
        model.compile(backend=backend)
        return trained(model, optimizer)
    if how == "a child in place":
        model.first.compile(backend=backend)  # type: ignore[union-attr,operator]
        return trained(model, optimizer)
    assert how == "a step function"
    return torch.compile(trained(model, optimizer), backend=backend)


def batch(seed: int) -> torch.Tensor:
    return torch.randn(5, 3, generator=torch.Generator().manual_seed(seed)).requires_grad_()


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


@pytest.mark.parametrize("fullgraph", [False, True])
def test_a_watch_that_ends_within_a_compiled_function_harms_no_one(fullgraph: bool) -> None:
    """As at a boundary in a compiled step: torch refuses a new stance there, or complains at the end."""
    model = Net()
    compiler = Backend("aot_eager")
    with rig(model) as here:
        forward = torch.compile(lambda x: model(x).sum(), backend=compiler, fullgraph=fullgraph)
        x = batch(0)
        expected = forward(x)
        runs = compiler.runs
        watch = here.watch()
        inside = model.second.register_forward_hook(lambda *rest: here.stop(watch))
        assert torch.equal(forward(x), expected)
        inside.remove()
        assert stance() == "default" and compiler.runs == runs
        assert torch.equal(forward(x), expected) and compiler.runs > runs and graphs() == 1


def test_a_watch_that_ends_beside_a_compiled_function_gives_the_code_back_when_it_has_ended() -> None:
    model = Net()
    compiler = Backend("aot_eager")
    begun, ended = threading.Event(), threading.Event()
    errors: list[BaseException] = []
    with rig(model) as here:
        forward = torch.compile(lambda x: model(x).sum(), backend=compiler, fullgraph=True)
        forward(batch(0))
        runs = compiler.runs
        watch = here.watch()

        def wait(*rest: Any) -> None:
            begun.set()
            ended.wait(30)

        inside = model.second.register_forward_hook(wait)

        def call() -> None:
            try:
                forward(batch(0))
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=call)
        thread.start()
        assert begun.wait(30)
        here.stop(watch)
        assert stance() == "eager_on_recompile"
        ended.set()
        thread.join(30)
        inside.remove()
        until(lambda: stance() == "default")
        forward(batch(0))
        assert errors == [] and compiler.runs > runs and graphs() == 1


def test_a_stance_of_the_programs_own_is_left_alone() -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    compiler = Backend("aot_eager")
    with rig(model, optimizer) as here:
        step = compiled_step("in place", model, optimizer, compiler)
        step(batch(0))
        runs = compiler.runs
        with torch.compiler.set_stance("fail_on_recompile"):
            watch = here.watch()
            step(batch(1))
            assert stance() == "fail_on_recompile" and compiler.runs > runs
            assert "'fail_on_recompile'" in here.eager_steps.obstacle
            assert "fail_on_recompile" in watch.subscription.notes[0]
            assert here.eager_steps.cost(watch.eager) == "eager steps: 0"
        step(batch(2))
        assert stance() == "force_eager" and here.eager_steps.obstacle == ""
        step(batch(3))
        assert {event.step for event in drained(watch)} == {3}
        assert here.eager_steps.cost(watch.eager) == "eager steps: 1"


def test_a_stance_that_the_program_sets_within_each_step_is_told() -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    compiler = Backend("aot_eager")
    with rig(model, optimizer) as here:
        step = compiled_step("in place", model, optimizer, compiler)
        step(batch(0))
        watch = here.watch()
        for seed in (1, 2):
            runs = compiler.runs
            with torch.compiler.set_stance("default"):
                step(batch(seed))
            assert compiler.runs > runs
        assert "within its steps" in here.eager_steps.obstacle
        assert drained(watch) == [] and here.eager_steps.cost(watch.eager) == "eager steps: 0"
        step(batch(3))
        assert drained(watch) and here.eager_steps.obstacle == ""


def test_no_hook_of_ours_makes_a_program_fail_that_forbids_recompilation() -> None:
    """Compiled code calls the hooks of its outermost module from outside of the graph."""
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step = compiled_step("in place", model, optimizer, "aot_eager")
    step(batch(0))
    with torch.compiler.set_stance("fail_on_recompile"), rig(model, optimizer) as here:
        step(batch(1))
        here.watch(kinds=ALL)
        step(batch(2))
    assert graphs() == 1


def test_a_stance_that_the_program_takes_back_leaves_none_of_ours_behind() -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    compiler = Backend("aot_eager")
    with rig(model, optimizer) as here:
        step = compiled_step("in place", model, optimizer, compiler)
        step(batch(0))
        watch = here.watch()
        theirs = torch.compiler.set_stance("eager_on_recompile")
        with theirs:
            here.stop(watch)
            assert stance() == "eager_on_recompile"
        assert stance() == "default"
        runs = compiler.runs
        step(batch(1))
        assert compiler.runs > runs


def test_what_the_program_has_forced_is_there_again_and_ends_with_it() -> None:
    model = Net()
    compiler, forced = Backend("aot_eager"), Backend("eager")
    model.compile(backend=compiler)
    with rig(model) as here:
        with torch.compiler.set_stance("default", force_backend=forced):
            model(batch(0))
            watch = here.watch()
            model(batch(0))
            assert drained(watch) and forced.runs == 1
            here.stop(watch)
            torch._dynamo.reset()
            model(batch(0))
            assert forced.runs == 2 and compiler.runs == 0
        torch._dynamo.reset()
        model(batch(0))
        assert forced.runs == 2 and compiler.runs == 1


def test_two_servers_in_one_process_share_the_stance() -> None:
    one, other = Net(), Net()
    one.compile(backend="aot_eager")
    other.compile(backend="aot_eager")
    one(batch(0)), other(batch(0))
    with rig(one) as first, rig(other) as second:
        mine, theirs = first.watch(), second.watch()
        first.stop(mine)
        assert stance() == "force_eager"
        other(batch(0))
        assert drained(theirs)
        second.stop(theirs)
        assert stance() == "default"
