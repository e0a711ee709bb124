"""Loops in which it is not plain which gradient was used, and when: several optimizers, scalers, none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.server.boundary_support import BOTH, Used, following, notes_of, tensors
from tests.server.capture_support import drained


def linear(inputs: int, outputs: int) -> nn.Linear:
    torch.manual_seed(inputs + outputs)
    return nn.Linear(inputs, outputs)


@pytest.mark.parametrize("given", [True, False], ids=["given", "found"])
def test_a_gan_whose_optimizers_step_apart(given: bool) -> None:
    models = {"generator": linear(2, 3), "critic": linear(3, 1)}
    generator, critic = models.values()
    optimizers = [torch.optim.Adam(model.parameters(), lr=0.1) for model in (generator, critic)]
    used = Used(nn.ModuleDict(models), *optimizers)
    with following(models, *(optimizers if given else ())) as loop:
        watches = {name: loop.watch(name, kinds=BOTH, payload="tensor") for name in models}
        for _ in range(3):
            used.step = loop.safepoint.step_count + 1
            optimizers[1].zero_grad()
            (critic(torch.randn(4, 3)) - critic(generator(torch.randn(4, 2)))).mean().backward()
            optimizers[1].step()
            used.step = loop.safepoint.step_count + 1
            optimizers[0].zero_grad()
            # This adds to the gradients of the critic, which its own optimizer never uses.
            critic(generator(torch.randn(4, 2))).mean().backward()
            optimizers[0].step()
        got = {
            (step, kind, f"{name}.{path}"): tensor
            for name, watch in watches.items()
            for (step, kind, path), tensor in tensors(drained(watch)).items()
        }
    assert len(used.seen) == 3 * 2 * 2 * 2
    # Of an optimizer that was not given nothing is known before its first step.
    early = [key for key in got if key not in used.seen]
    assert early == ([] if given else [key for key in got if key[0] == 1 and key[2].startswith("generator")])
    for key, tensor in used.seen.items():
        assert torch.equal(got[key], tensor), key


@pytest.mark.parametrize("given", [True, False], ids=["given", "found"])
def test_optimizers_that_step_one_after_the_other_end_one_iteration(given: bool) -> None:
    model = nn.ModuleDict({"first": linear(2, 3), "second": linear(3, 1)})
    first, second = (torch.optim.SGD(part.parameters(), lr=0.1) for part in model.values())
    used = Used(model, first, second)
    with following(model, *((first, second) if given else ())) as loop:
        watch = loop.watch(kinds=BOTH, payload="tensor")
        for used.step in range(1, 4):
            model["second"](model["first"](torch.randn(4, 2))).square().sum().backward()
            first.step()
            nn.utils.clip_grad_norm_(model["second"].parameters(), 0.01)
            second.step()
            first.zero_grad()
            second.zero_grad()
            loop.step()
        used.equals(drained(watch))
        assert len(used.seen) == 3 * 2 * 4


def test_a_scaler_gradients_are_told_unscaled_and_clipped_and_none_of_a_skipped_step() -> None:
    model = linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    used = Used(model, optimizer)
    with following(model, optimizer, scaler=scaler) as loop:
        watch = loop.watch(kinds=BOTH, payload="tensor")
        for used.step in range(1, 5):
            optimizer.zero_grad()
            batch = torch.full((1, 3), torch.inf) if used.step == 2 else torch.randn(4, 3)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = model(batch).square().mean()
            scaler.scale(loss).backward()
            if used.step > 2:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), 0.01)
            scaler.step(optimizer)
            scaler.update()
        events = drained(watch)
        used.equals(events)
        assert {event.step for event in events} == {1, 3, 4}
        assert loop.safepoint.step_count == 4
        norms = [
            sum(
                float(tensor.square().sum())
                for key, tensor in used.seen.items()
                if key[:2] == (step, "gradient")
            )
            for step in (1, 3, 4)
        ]
        assert norms[0] > 1e-2**2 >= max(norms[1:]) * 0.99


def test_a_fused_optimizer_that_takes_the_scale_itself_steps_and_is_told_also_where_it_changes_nothing() -> (
    None
):
    model = linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    used = Used(model, optimizer)
    with following(model, optimizer, scaler=scaler) as loop:
        watch = loop.watch(kinds=("gradient",))
        for used.step in (1, 2):
            optimizer.zero_grad()
            batch = torch.full((1, 3), torch.inf) if used.step == 2 else torch.randn(4, 3)
            scaler.scale(model(batch).square().mean()).backward()
            scaler.step(optimizer)
            scaler.update()
        events = drained(watch)
    for event in events:
        stats = event.values[0].stats
        assert stats is not None
        seen = used.seen[event.step, "gradient", event.path]
        assert stats.nan + stats.inf == int((~seen.isfinite()).sum())
    assert [event.step for event in events] == [1, 1, 2, 2]
    assert any(event.values[0].stats.nan for event in events if event.step == 2)  # type: ignore[union-attr]


def test_a_frozen_parameter_has_no_gradient_and_says_so() -> None:
    model = nn.Sequential(linear(2, 3), linear(3, 1))
    model[0].bias.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with following(model, optimizer) as loop:
        watch = loop.watch(kinds=("gradient",))
        model[0](torch.ones(1, 2)).sum().backward()
        optimizer.step()
        states = loop.states(watch)
        notes = {path: note for _, _, path, note in notes_of(watch)}
    assert notes["0.weight"] == ""
    assert notes["0.bias"].startswith("no gradient: the parameter is frozen")
    assert notes["1.weight"] == notes["1.bias"]
    assert notes["1.weight"].startswith("no gradient: nothing was back-propagated to the parameter")
    assert states["gradient", "0.weight"].state == "fired"
    assert (states["gradient", "0.bias"].state, states["gradient", "0.bias"].fired) == ("blind", 1)
    assert states["gradient", "0.bias"].reason == notes["0.bias"]


def test_what_no_optimizer_holds_is_told_when_the_iteration_is_over_with_the_gradient_that_was_there() -> (
    None
):
    model = nn.Sequential(linear(2, 3), linear(3, 1))
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1)
    gradients: list[torch.Tensor] = []
    averages: list[torch.Tensor] = []
    with following(model, optimizer) as loop:
        watch = loop.watch(glob="1", kinds=BOTH, payload="tensor")
        for number in range(3):
            loss = model(torch.randn(4, 2)).square().sum()
            told = tensors(drained(watch))
            if number:
                assert torch.equal(told[number, "gradient", "1.weight"], gradients[-1])
                assert torch.equal(told[number, "parameter", "1.weight"], averages[-1])
                assert len(told) == 4
            loss.backward()
            gradients.append(model[1].weight.grad.clone())
            optimizer.step()
            # As an average of weights is kept beside the optimizer.
            with torch.no_grad():
                model[1].weight.mul_(0.5)
            averages.append(model[1].weight.detach().clone())
            model.zero_grad()


def test_a_loop_without_an_optimizer_that_marks_its_steps() -> None:
    model = linear(2, 1)
    with following(model) as loop:
        watch = loop.watch(kinds=BOTH, payload="tensor")
        seen: dict[Any, torch.Tensor] = {}
        for step in range(1, 4):
            model.zero_grad()
            model(torch.randn(3, 2)).sum().backward()
            with torch.no_grad():
                for path, parameter in model.named_parameters():
                    assert parameter.grad is not None
                    parameter.sub_(parameter.grad)
                    seen[step, "gradient", path] = parameter.grad.clone()
                    seen[step, "parameter", path] = parameter.detach().clone()
            loop.step()
        got = tensors(drained(watch))
    assert got.keys() == seen.keys()
    for key, tensor in seen.items():
        assert torch.equal(got[key], tensor), key


def test_optimizers_inside_of_backward_are_told_with_their_iteration() -> None:
    model = nn.Sequential(linear(2, 3), linear(3, 1))
    optimizers = {id(one): torch.optim.SGD([one], lr=0.1) for one in model.parameters()}
    used = Used(model, *optimizers.values())

    def step(parameter: torch.Tensor) -> None:
        optimizers[id(parameter)].step()
        optimizers[id(parameter)].zero_grad()

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(step)
    with following(model) as loop:
        watch = loop.watch(kinds=BOTH, payload="tensor")
        for used.step in range(1, 4):
            loss = model(torch.randn(4, 2)).square().sum()
            assert loop.safepoint.step_count == used.step - 1
            loss.backward()
        model(torch.randn(4, 2))
        used.equals(drained(watch))
        assert len(used.seen) == 3 * 2 * 4


def test_the_gradient_of_an_iteration_that_is_noticed_late_is_not_made_up() -> None:
    model = nn.Sequential(linear(2, 3), linear(3, 1))
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1)
    model[0].weight.register_post_accumulate_grad_hook(lambda parameter: optimizer.step())
    with following(model) as loop:
        watch = loop.watch(glob="1", kinds=BOTH)
        model(torch.randn(4, 2)).square().sum().backward()
        assert drained(watch) == []
        model(torch.randn(4, 2))
        notes = {(kind, path): note for step, kind, path, note in notes_of(watch) if step == 1}
    assert notes["gradient", "1.weight"].startswith("no gradient: the end of its iteration was noticed")
    assert notes["parameter", "1.weight"] == ""


def test_a_sparse_gradient_and_a_lazy_parameter_say_what_they_are() -> None:
    model = nn.ModuleDict({"embed": nn.Embedding(5, 3, sparse=True), "lazy": nn.LazyLinear(2)})
    optimizer = torch.optim.SGD(model["embed"].parameters(), lr=0.1)
    with following(model, optimizer) as loop:
        watch = loop.watch(kinds=BOTH)
        model["embed"](torch.tensor([1])).sum().backward()
        optimizer.step()
        loop.step()
        notes = {(kind, path): note for _, kind, path, note in notes_of(watch)}
    assert "sparse" in notes["gradient", "embed.weight"]
    assert notes["parameter", "embed.weight"] == ""
    assert "uninitialized" in notes["parameter", "lazy.weight"]


def test_what_is_trained_again_after_a_return_is_told_again() -> None:
    model = nn.Sequential(linear(2, 3), linear(3, 1))
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1)
    with following(model, optimizer) as loop:
        watch = loop.watch(kinds=BOTH, payload="none")

        def iterate() -> None:
            model(torch.ones(1, 2)).sum().backward()
            optimizer.step()
            loop.step()

        for _ in range(3):
            iterate()
        loop.safepoint.set_step_count(2)
        iterate()
        steps = {path: [] for path in ("0.weight", "1.weight")}  # type: dict[str, list[int]]
        for event in drained(watch):
            if event.hook == "gradient" and event.path in steps:
                steps[event.path].append(event.step)
    assert steps == {"0.weight": [1, 2, 3, 3], "1.weight": [1, 2, 3, 2, 3]}


def test_an_optimizer_that_never_steps_is_told_as_the_reason() -> None:
    model = linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with following(model, optimizer) as loop:
        watch = loop.watch(kinds=BOTH)
        for _ in range(2):
            assert loop.states(watch)["gradient", "weight"].state == "armed"
            model(torch.ones(1, 2)).sum().backward()
            loop.step()
        assert drained(watch) == []
        state = loop.states(watch)["gradient", "weight"]
        assert (state.state, state.fired, state.reason[:31]) == (
            "blind",
            0,
            "its optimizer has not stepped y",
        )
        optimizer.step()
        state = loop.states(watch)["gradient", "weight"]
        assert (state.state, state.fired, state.reason) == ("fired", 1, "")


def test_a_loop_under_inference_mode_at_its_boundary() -> None:
    model = linear(2, 1)
    with following(model) as loop:
        watch = loop.watch(kinds=BOTH)
        model(torch.ones(1, 2)).sum().backward()
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
            loop.step()
        assert [note for *_, note in notes_of(watch)] == [""] * 4
