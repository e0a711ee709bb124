"""A run of the model gives what PyTorch gives, and leaves nothing of the model other than before."""

from __future__ import annotations

import contextlib
import gc
import random
import weakref
from collections.abc import Callable
from typing import Any, Literal, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modscope_server.errors import BadRequest, ForwardRaised, NotMaterialized, WouldBreakTraining
from modscope_server.inspection.backup import same_bits
from modscope_server.inspection.forward import Mode, run_forward
from modscope_server.inspection.values import flatten
from tests.models import MLP, ZOO, Entry

MODES: tuple[Mode, ...] = ("eval", "train", "current")
RUNNABLE = [entry for entry in ZOO.values() if entry.runs and entry.name != "lazy"]


def state_of(model: nn.Module) -> list[Any]:
    """Everything that a run must leave as it was, in a form that compares."""
    state: list[Any] = []
    for path, module in model.named_modules(remove_duplicate=False):
        state.append((path, module.training, sorted(module._non_persistent_buffers_set)))
        for table in (module._parameters, module._buffers):
            for name, tensor in table.items():
                if tensor is None:
                    state.append((path, name, None))
                    continue
                raw = tensor.detach().clone().contiguous().reshape(-1).view(torch.uint8).tolist()
                facts = (
                    id(tensor),
                    None if tensor.is_inference() else tensor._version,
                    tensor.requires_grad,
                    tensor.data_ptr(),
                    tensor.stride(),
                )
                state.append((path, name, facts, raw))
    return state


def random_state() -> list[Any]:
    legacy = np.random.get_state()
    return [random.getstate(), legacy[0], legacy[1].tolist(), legacy[2:], torch.get_rng_state().tolist()]


@contextlib.contextmanager
def nothing_changes(model: nn.Module) -> Any:
    before = state_of(model), random_state()
    yield
    after = state_of(model), random_state()
    assert after[0] == before[0]
    assert after[1] == before[1]


@pytest.mark.parametrize("entry", RUNNABLE, ids=lambda entry: entry.name)
def test_the_zoo_gives_what_pytorch_gives(entry: Entry) -> None:
    model = entry.build()
    args, kwargs = entry.inputs()
    for mode in MODES:
        torch.manual_seed(5)
        with nothing_changes(model):
            got, tensors = flatten(run_forward(model, args, kwargs, mode))
        twin = entry.build()
        if mode != "current":
            twin.train(mode == "train")
        with torch.no_grad():
            want, expected = flatten(twin(*args, **kwargs))
        assert got == want
        assert len(tensors) == len(expected)
        assert all(same_bits(one, other) for one, other in zip(tensors, expected, strict=True))


def test_outputs_keep_the_models_own_structure() -> None:
    outcome = run_forward(ZOO["multi_output"].build(), *ZOO["multi_output"].inputs())
    assert type(outcome["outcome"]).__name__ == "Outcome"
    assert isinstance(outcome["both"], list)
    assert outcome["none"] is None
    assert outcome["count"] == 2
    assert not outcome["both"][0].requires_grad


class Nasty(nn.Module):
    """Changes in forward all that a run has to put back, then perhaps raises."""

    kept: Tensor
    written: Tensor
    swapped: Tensor
    rebound: Tensor
    removed: Tensor
    emptied: Tensor | None
    filled: Tensor | None
    strided: Tensor
    special: Tensor
    added: Tensor
    counter: Tensor

    def __init__(self, raises: bool = False) -> None:
        super().__init__()
        self.raises = raises
        self.linear = nn.Linear(2, 2)
        self.norm = nn.BatchNorm1d(2)
        self.drop = nn.Dropout(0.5)
        for name in ("kept", "written", "swapped", "rebound", "removed", "emptied"):
            self.register_buffer(name, torch.arange(4.0), persistent=name != "removed")
        self.register_buffer("filled", None)
        self.register_buffer("strided", torch.arange(6.0).reshape(2, 3).t())
        self.register_buffer("special", torch.tensor([float("nan"), -0.0, float("inf")]))
        self.register_buffer("counter", torch.tensor(0))
        with torch.inference_mode():
            self.register_buffer("inferred", torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.norm(self.linear(x)))
        self.written.mul_(2)
        self.written.data.add_(1)
        self.swapped.data = torch.ones(9)
        self.rebound = torch.zeros(1)
        del self.removed
        self.emptied = None
        self.filled = torch.ones(3)
        self.register_buffer("added", torch.ones(1), persistent=False)
        self.strided.zero_()
        self.special.fill_(0)
        self.counter += 1
        self.linear.weight.requires_grad_(False)
        self.linear.bias = nn.Parameter(torch.zeros(2))
        self.train(not self.training)
        self.drop.training = True
        random.random(), np.random.rand(), torch.rand(1)
        if self.raises:
            raise ValueError("no more of this")
        return x


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("raises", [False, True])
def test_whatever_forward_does_is_undone(mode: Mode, raises: bool) -> None:
    model = Nasty(raises)
    model.norm.eval()
    with nothing_changes(model):
        if raises:
            with pytest.raises(ForwardRaised, match="the model raised ValueError: no more of this"):
                run_forward(model, [torch.ones(3, 2)], {}, mode)
        else:
            assert run_forward(model, [torch.ones(3, 2)], {}, mode).shape == (3, 2)


def test_a_model_that_trains_only_in_part_keeps_its_flags() -> None:
    class Partial(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Dropout(0.9), nn.Sequential())

        def train(self, mode: bool = True) -> Partial:
            super().train(mode)
            self.inner.eval()
            return self

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.inner(x)
            return out

    model = Partial()
    model.inner[1].train()
    with nothing_changes(model):
        # The model's own train() decides what training means: its dropout stays off.
        assert torch.equal(run_forward(model, [torch.ones(50)], {}, "train"), torch.ones(50))


def losses(between: Callable[[nn.Module, Tensor, str], None]) -> list[float]:
    torch.manual_seed(0)
    random.seed(0)
    model = nn.Sequential(nn.Embedding(10, 4, max_norm=0.5), nn.Flatten(), nn.Linear(12, 6))
    model.extend([nn.BatchNorm1d(6), nn.Dropout(0.3), Memory(), nn.Linear(6, 1)])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    seen = []
    for _ in range(5):
        x = torch.randint(0, 10, (8, 3))
        between(model, x, "before forward")
        loss = (model(x) ** 2).mean() + random.random()
        between(model, x, "before backward")
        optimizer.zero_grad()
        loss.backward()
        between(model, x, "before step")
        optimizer.step()
        seen.append(loss.item())
    return seen


class Memory(nn.Module):
    """Moves a buffer in place that autograd has saved, as a codebook does."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centre", torch.ones(6))

    def forward(self, x: Tensor) -> Tensor:
        assert isinstance(self.centre, Tensor)
        out = x * self.centre
        if not torch.is_grad_enabled():
            self.centre.lerp_(x.detach().mean(0), 0.5)
        return out


@pytest.mark.parametrize("mode", MODES)
def test_training_goes_on_bit_for_bit(mode: Mode) -> None:
    """Also where a graph still has to run backward through what the run has touched."""
    plain = losses(lambda model, x, when: None)
    assert losses(lambda model, x, when: run_forward(model, [(x + 5) % 10], {}, mode)) == plain


def test_the_trainers_modes_do_not_reach_the_run() -> None:
    class Modes(nn.Module):
        def forward(self, x: Tensor) -> list[Any]:
            product = x @ x
            return [torch.is_grad_enabled(), torch.is_inference_mode_enabled(), product]

    x = torch.ones(2, 2)
    for context in (torch.inference_mode(), torch.autocast("cpu", torch.bfloat16), torch.enable_grad()):
        with context:
            grad, inference, product = run_forward(Modes(), [x], {})
            assert (grad, inference, product.dtype) == (False, False, torch.float32)
        assert torch.is_grad_enabled()
    assert not torch.is_autocast_enabled("cpu")


def test_results_are_no_views_of_the_model() -> None:
    class Shows(nn.Module):
        count: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2))
            self.register_buffer("count", torch.zeros(2))

        def forward(self, x: Tensor) -> dict[str, Any]:
            with torch.enable_grad():
                product = self.weight * x
            self.count += 1
            view = self.count[1:]
            self.count = self.count * 5
            return {"weight": self.weight, "view": view, "new": self.count, "product": product, "x": x}

    model, x = Shows(), torch.ones(2)
    out = run_forward(model, [x], {})
    with torch.no_grad():
        model.weight.fill_(9)
    assert model.count.tolist() == [0, 0]
    assert out["weight"].tolist() == [1, 1]
    assert out["view"].tolist() == [1]
    assert out["new"].tolist() == [5, 5]
    assert not any(tensor.requires_grad for tensor in flatten(out)[1])


def test_models_without_parameters_and_calls_without_tensors() -> None:
    assert torch.equal(run_forward(nn.ReLU(), [torch.tensor([-1.0, 2.0])], {}), torch.tensor([0.0, 2.0]))
    model = nn.Identity()
    assert run_forward(model, [3], {}) == 3
    only = ZOO["kwargs_only"].build()
    with pytest.raises(ForwardRaised, match=r"missing 2 required keyword-only arguments: 'left' and 'right'"):
        run_forward(only, [], {})


def test_the_error_tells_what_was_given() -> None:
    with pytest.raises(ForwardRaised, match="the model raised RuntimeError: mat1 and mat2") as caught:
        run_forward(MLP(), [torch.ones(2, 5)], {})
    assert "0: float32[2, 5]" in caught.value.hint
    with pytest.raises(ForwardRaised) as caught:
        run_forward(MLP(), [], {"y": {"z": torch.ones(1, dtype=torch.int64)}})
    assert "y.z: int64[1]" in caught.value.hint
    with pytest.raises(ForwardRaised) as caught:
        run_forward(MLP(), [torch.ones(1)] * 30, {})
    assert caught.value.hint.count("float32") == 16
    assert "and 14 more" in caught.value.hint
    with pytest.raises(BadRequest, match="unknown mode 'test'"):
        run_forward(MLP(), [torch.ones(1, 1)], {}, "test")  # type: ignore[arg-type]


def test_the_error_keeps_nothing_of_the_failed_run_alive() -> None:
    held: list[weakref.ref[Tensor]] = []

    class Fails(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            big = x * 2
            held.append(weakref.ref(big))
            raise RuntimeError("x" * 10_000)

    with pytest.raises(ForwardRaised) as caught:
        run_forward(Fails(), [torch.ones(3)], {})
    gc.collect()
    assert held[0]() is None
    assert len(caught.value.message) < 5_000


def test_an_interrupt_passes_and_still_restores() -> None:
    class Interrupted(Nasty):
        def forward(self, x: Tensor) -> Tensor:
            super().forward(x)
            raise KeyboardInterrupt

    model = Interrupted()
    with nothing_changes(model), pytest.raises(KeyboardInterrupt):
        run_forward(model, [torch.ones(3, 2)], {})


def test_a_lazy_model_is_left_for_training_to_shape() -> None:
    entry = ZOO["lazy"]
    model = entry.build()
    with pytest.raises(NotMaterialized, match=r"0\.weight is uninitialized \(lazy\)"):
        run_forward(model, *entry.inputs())
    assert nn.parameter.is_lazy(next(model.parameters()))
    model(*entry.inputs()[0])
    assert run_forward(model, *entry.inputs()).shape == (2, 2)


def test_compiled_code_is_left_out_and_stays_compiled() -> None:
    compiled_frames = 0

    def backend(graph: Any, inputs: Any) -> Any:
        nonlocal compiled_frames
        compiled_frames += 1
        return graph.forward

    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    compiled = cast("nn.Module", torch.compile(model, backend=backend, fullgraph=True))
    x = torch.ones(3, 2)
    compiled(x)
    assert compiled_frames == 1
    for mode in MODES:
        run_forward(compiled, [x], {}, mode)
        run_forward(model, [x], {}, mode)
    compiled(x)
    assert compiled_frames == 1


def test_a_wrapper_that_talks_to_other_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    class DistributedDataParallel(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError("this would broadcast the buffers")

    class FullyShardedDataParallel(nn.Sequential):
        pass

    model = MLP()
    x = torch.ones(2, 1)
    assert torch.equal(run_forward(DistributedDataParallel(model), [x], {}), model(x))
    sharded = nn.Sequential(FullyShardedDataParallel(nn.Linear(1, 1)))
    run_forward(sharded, [x], {})
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(WouldBreakTraining, match="sharded over 2 ranks: running it on one"):
        run_forward(sharded, [x], {})


def test_tensors_go_to_the_device_of_the_first_parameter() -> None:
    class Where(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1, device="meta"))
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, x: Tensor, pair: Any) -> str:
            return f"{x.device} {pair[0].device} {pair[1]['y'].device}"

    there = torch.ones(1)
    assert run_forward(Where(), [there], {"pair": (there, {"y": there})}) == "cpu cpu cpu"
    if torch.cuda.is_available():
        model = Where()
        model.scale.data = model.scale.data.cuda()
        assert run_forward(model, [there], {"pair": (there, {"y": there})}) == "cuda:0 cuda:0 cuda:0"


def test_dropout_in_train_mode_draws_and_leaves_no_trace() -> None:
    model = nn.Dropout(0.5)
    x = torch.ones(100)
    torch.manual_seed(3)
    want = F.dropout(x, 0.5)
    torch.manual_seed(3)
    mode: Literal["train"] = "train"
    assert torch.equal(run_forward(model, [x], {}, mode), want)
    assert torch.equal(run_forward(model, [x], {}, mode), want)
