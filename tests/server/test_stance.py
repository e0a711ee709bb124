"""The compiler's stance is the program's: ours takes the place of a default one alone, without a trace."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.server.compiled_support import (
    ALL,
    Backend,
    Net,
    batch,
    compiled_step,
    drained,
    fresh_compiler,
    graphs,
    rig,
    stance,
)
from tests.server.rpc import until

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
]


@pytest.fixture(autouse=True)
def _compiler() -> Iterator[None]:
    with fresh_compiler():
        yield


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


def test_a_watch_that_ends_before_a_forward_of_its_step_leaves_the_count_right() -> None:
    """Forwards are told of in eager code alone; who counts on them, having seen one, would count no more."""
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with rig(model, optimizer) as here:
        step = compiled_step("in place", model, optimizer, "aot_eager")
        step(batch(0))
        watch = here.watch()
        step(batch(1))
        ends = model.register_forward_pre_hook(lambda *rest: here.stop(watch), prepend=True)
        step(batch(2))
        ends.remove()
        step(batch(3))
        step(batch(4))
        assert here.safepoint.step_count == 5
        assert {event.step for event in drained(watch)} == {1}


def test_a_step_that_is_compiled_whole_is_watched_where_the_loop_marks_its_steps() -> None:
    """None of the hooks by which steps are counted fires there; `scope.step()` tells."""
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    compiler = Backend("aot_eager")
    with rig(model, optimizer) as here:
        step = compiled_step("a step function", model, optimizer, compiler)
        step(batch(0))
        here.safepoint.mark_step()
        watch = here.watch(every=3)
        for seed in range(1, 7):
            step(batch(seed))
            here.safepoint.mark_step()
        assert {event.step for event in drained(watch)} == {3, 6}
        assert here.eager_steps.cost(watch.eager) == "eager steps: 2"


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
