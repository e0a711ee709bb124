"""Requests meet a running loop between steps, an idle model at once, and never tear or are torn."""

from __future__ import annotations

import copy
import gc
import io
import os
import pickle
import threading
import weakref
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

from modscope_server.errors import Closed, NoSafePoint
from modscope_server.runtime.hooks import HookManager
from modscope_server.runtime.registry import Registry
from modscope_server.runtime.safepoint import Answer, Caller, SafePoint
from tests.server.safepoint_support import small_model, train


@pytest.fixture
def model() -> nn.Module:
    return small_model()


@pytest.fixture
def safepoint(model: nn.Module) -> Iterator[SafePoint]:
    point = SafePoint([model], optimizers=1, boot_id="boot")
    yield point
    point.close()


class Loop:
    """A training loop on a thread of its own, which stops at the next step when told."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.stop = threading.Event()
        self.began = threading.Event()
        self.steps = 0
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, args=(model, optimizer), daemon=True)

    def _run(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        try:
            while not self.stop.is_set():
                train(model, optimizer)
                self.steps += 1
                self.began.set()
        except BaseException as error:
            self.error = error

    def __enter__(self) -> Loop:
        self.thread.start()
        assert self.began.wait(20)
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop.set()
        self.thread.join(20)
        assert not self.thread.is_alive()


def test_idle_model_is_served_at_once_on_the_calling_thread(safepoint: SafePoint) -> None:
    answer = safepoint.run(threading.get_ident)
    assert answer == Answer(threading.get_ident(), 0)


def test_running_loop_serves_on_its_own_thread_between_steps(model: nn.Module, safepoint: SafePoint) -> None:
    with Loop(model, torch.optim.SGD(model.parameters(), lr=0.01)) as loop:
        answers = [safepoint.run(threading.get_ident, timeout=20) for _ in range(20)]
        assert {answer.value for answer in answers} == {loop.thread.ident}
        assert [answer.step for answer in answers] == sorted(answer.step for answer in answers)
    assert safepoint.step_count == loop.steps


def test_reads_are_not_torn_and_carry_their_step(safepoint: SafePoint, model: nn.Module) -> None:
    class WritesTheStep(torch.optim.Optimizer):
        """Rewrites every element to the step number, in pieces."""

        def __init__(self, params: Iterator[nn.Parameter]) -> None:
            super().__init__(params, {})
            self.number = 0

        @torch.no_grad()
        def step(self, closure: None = None) -> None:  # type: ignore[override]
            self.number += 1
            for group in self.param_groups:
                for parameter in group["params"]:
                    flat = parameter.view(-1)
                    for index in range(len(flat)):
                        flat[index] = self.number

    optimizer = WritesTheStep(model.parameters())
    read = lambda: torch.cat([p.detach().clone().view(-1) for p in model.parameters()])  # noqa: E731
    with Loop(model, optimizer) as loop:
        while loop.steps < 2:
            safepoint.run(read, timeout=20)
        for _ in range(200):
            answer = safepoint.run(read, timeout=20)
            assert answer.value.unique().tolist() == [answer.step]
    assert loop.error is None


def test_writes_never_break_a_backward(model: nn.Module, safepoint: SafePoint) -> None:
    def write() -> None:
        for parameter in model.parameters():
            parameter.mul_(1.0)

    with Loop(model, torch.optim.AdamW(model.parameters())) as loop:
        for _ in range(200):
            safepoint.run(write, kind="write", timeout=20)
    assert loop.error is None


def test_call_by_the_training_thread_itself_is_served_anywhere(
    model: nn.Module, safepoint: SafePoint
) -> None:
    """As from a notebook: the training thread waits for a server thread that serves its own call."""
    me = Caller("boot", os.getpid(), threading.get_native_id())
    notes: dict[str, tuple[str, ...]] = {}

    def call(where: str) -> None:
        def serve() -> None:
            notes[where] = safepoint.run(lambda: None, kind="write", caller=me, timeout=5).notes

        server = threading.Thread(target=serve)
        server.start()
        server.join(20)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        train(model, optimizer, call)
    assert "backward" in notes["forward"][0]
    assert notes["backward"] == ()


def test_no_safe_point_says_what_the_training_thread_does_and_withdraws(
    model: nn.Module, safepoint: SafePoint
) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ran: list[str] = []
    errors: list[NoSafePoint] = []

    def ask() -> None:
        with pytest.raises(NoSafePoint) as caught:
            safepoint.run(lambda: ran.append("late"), kind="write", timeout=0.05)
        errors.append(caught.value)

    def between(where: str) -> None:
        if where == "forward":
            asking = threading.Thread(target=ask)
            asking.start()
            asking.join(20)

    train(model, optimizer)
    train(model, optimizer, between)
    train(model, optimizer)
    assert ran == []
    assert "between a forward and its backward" in errors[0].message
    assert "test_safepoint.py" in errors[0].message


def test_cancelled_request_never_runs(model: nn.Module, safepoint: SafePoint) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ran: list[str] = []
    gone = threading.Event()
    asking = threading.Thread(
        target=lambda: pytest.raises(  # noqa: RUF061 - a thread's target
            NoSafePoint, safepoint.run, lambda: ran.append("x"), kind="write", cancelled=gone
        )
    )

    def between(where: str) -> None:
        if where == "forward":
            asking.start()
            gone.set()
            asking.join(20)
            assert not asking.is_alive()

    train(model, optimizer)
    train(model, optimizer, between)
    assert ran == []


def test_a_loop_that_ended_is_idle_within_seconds(model: nn.Module, safepoint: SafePoint) -> None:
    with Loop(model, torch.optim.SGD(model.parameters(), lr=0.01)) as loop:
        safepoint.run(lambda: None, timeout=20)
    assert loop.error is None
    assert safepoint.run(threading.get_ident, timeout=20).value == threading.get_ident()


def test_what_the_request_raises_reaches_the_caller_and_not_the_loop(
    model: nn.Module, safepoint: SafePoint
) -> None:
    def fail() -> None:
        raise ValueError("mine")

    with Loop(model, torch.optim.SGD(model.parameters(), lr=0.01)) as loop:
        for _ in range(5):
            with pytest.raises(ValueError, match="mine"):
                safepoint.run(fail, timeout=20)
    assert loop.error is None


def test_reads_take_no_more_than_their_share_of_a_running_loop(model: nn.Module) -> None:
    """One slow read makes the next wait for the rest of its share; a write does not wait."""
    point = SafePoint([model], optimizers=1, read_share=0.001)
    nap = threading.Event()
    try:
        with Loop(model, torch.optim.SGD(model.parameters(), lr=0.01)) as loop:
            point.run(lambda: nap.wait(0.05), timeout=20)
            assert point.run(lambda: "written", kind="write", timeout=20).value == "written"
            with pytest.raises(NoSafePoint, match="of the loop's time") as caught:
                point.run(lambda: None, timeout=0.2)
            assert "read_share" in caught.value.hint
        assert loop.error is None
    finally:
        point.close()


def test_a_model_run_by_a_request_counts_neither_as_step_nor_as_pending(
    model: nn.Module, safepoint: SafePoint
) -> None:
    def run() -> torch.Tensor:
        with torch.enable_grad():
            return model(torch.randn(2, 4)).sum()  # type: ignore[no-any-return]

    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    train(model, optimizer)
    answer = safepoint.run(run, timeout=20)
    assert answer.value.requires_grad
    assert not safepoint.backward_expected
    train(model, optimizer)
    assert safepoint.step_count == 2


def test_requests_run_without_grad_whatever_the_thread_had(safepoint: SafePoint) -> None:
    def modes() -> tuple[bool, bool, bool]:
        return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")

    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert safepoint.run(modes).value == (False, False, False)
        assert modes() == (False, True, True)


def test_the_safe_points_own_hooks_are_listed_with_their_firings(
    model: nn.Module, safepoint: SafePoint
) -> None:
    manager = HookManager(watches=1, events=1, size=1)
    for _ in range(3):
        model(torch.randn(2, 4))
    states = manager.listing(Registry({"model": model}).get())
    assert [(state.path, state.kind, state.owner, state.fired) for state in states] == [
        ("", "forward_pre", "safe point", 3),
        ("", "forward", "safe point", 3),
    ]


def test_close_takes_the_hooks_off_and_fails_what_comes(model: nn.Module) -> None:
    before = dict(model._forward_hooks), dict(model._forward_pre_hooks)
    point = SafePoint([model])
    assert (dict(model._forward_hooks), dict(model._forward_pre_hooks)) != before
    point.close()
    point.close()
    assert (dict(model._forward_hooks), dict(model._forward_pre_hooks)) == before
    with pytest.raises(Closed):
        point.run(lambda: None)


def test_copies_of_the_model_are_free_of_the_safe_point(model: nn.Module, safepoint: SafePoint) -> None:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for twin in (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(buffer, weights_only=False),
    ):
        optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
        twin(torch.randn(2, 4)).sum().backward()
        assert not safepoint.backward_expected
        optimizer.zero_grad()
    assert safepoint.step_count == 0


def test_a_copy_of_the_model_keeps_neither_it_nor_the_server_alive() -> None:
    model = nn.Sequential(nn.Linear(4, 1))
    point = SafePoint([model])
    kept = copy.deepcopy(copy.deepcopy(model))
    point.close()
    gone = weakref.ref(model), weakref.ref(point)
    del model, point
    gc.collect()
    assert [ref() for ref in gone] == [None, None]
    assert kept(torch.ones(1, 4)).shape == (1, 1)


def test_output_with_a_pending_hook_saves_without_a_warning(model: nn.Module, safepoint: SafePoint) -> None:
    torch.save(model(torch.randn(2, 4)), io.BytesIO())


def test_lbfgs_closure_forwards_are_no_boundaries(model: nn.Module, safepoint: SafePoint) -> None:
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=4)
    inputs = torch.randn(8, 4)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(inputs).square().mean()
        loss.backward()
        return loss  # type: ignore[no-any-return]

    for _ in range(3):
        optimizer.step(closure)
    assert safepoint.step_count == 3


def compiled(make: Callable[[], nn.Module], style: str, attached: str) -> torch.Tensor:
    """What a model compiled with fullgraph=True gives on its third call, with modscope attached or not."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = make()
    point = SafePoint([model]) if attached == "before" else None
    try:
        call: Callable[[torch.Tensor], torch.Tensor] = model
        if style == "compile(model)":
            call = torch.compile(model, fullgraph=True, backend="eager")
        elif style == "model.compile()":
            model.compile(fullgraph=True, backend="eager")
        else:
            call = torch.compile(lambda x: model(x).sum(), fullgraph=True, backend="eager")
        call(torch.ones(2, 4))
        point = point or (SafePoint([model]) if attached == "after" else None)
        call(torch.ones(2, 4))
        return call(torch.ones(2, 4))
    finally:
        if point is not None:
            point.close()


@pytest.mark.parametrize("style", ["compile(model)", "model.compile()", "compiled step"])
@pytest.mark.parametrize("attached", ["before", "after"])
@pytest.mark.parametrize("kind", ["container", "module"])
def test_whole_graph_compilation_that_succeeds_alone_succeeds_attached(
    style: str, attached: str, kind: str
) -> None:
    make = Twice if kind == "module" else lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    try:
        expected = compiled(make, style, "not at all")
    except RuntimeError:
        # torch itself finds no frame to compile in a bare container.
        assert (kind, style) == ("container", "model.compile()")
        return
    assert torch.equal(compiled(make, style, attached), expected)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.linear(x))
