"""The tour of nn.Module over the wire: each of its ten items against PyTorch in the same test."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from modscope_client.errors import FailedPrecondition, InvalidArgument
from tests.end_to_end.serving import bits, raw, served
from tests.plain_models import MLP, Head, HeadOfLinear


class WithNorm(nn.Module):
    """A twin of MLP that has buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.w1 = nn.Linear(2, 4)
        self.norm = nn.BatchNorm1d(4)
        self.w2 = nn.Linear(4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.w2(F.relu(self.norm(self.w1(x))))
        return y


MODELS: list[Callable[[], nn.Module]] = [MLP, Head, HeadOfLinear, WithNorm]


def init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, mean=0.0, std=0.02)


def hook_counts(module: nn.Module) -> list[int]:
    kinds = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
    return [len(getattr(part, kind)) for part in module.modules() for kind in kinds]


@pytest.mark.parametrize("build", MODELS)
def test_1_print_model(build: Callable[[], nn.Module]) -> None:
    with served(build()) as live:
        assert str(live.model) == repr(live.module)


def test_1_children_and_isinstance() -> None:
    with served(MLP()) as live:
        children = live.model.children()
        assert [child.name for child in children] == [name for name, _ in live.module.named_children()]
        assert [child.name for child in children] == ["w1", "w2", "w3"]
        for type_, class_ in (
            ("Linear", nn.Linear),
            ("torch.nn.Embedding", nn.Embedding),
            ("Module", nn.Module),
        ):
            expected = [path for path, module in live.module.named_modules() if isinstance(module, class_)]
            assert [module.path for module in live.model.modules("*", type=type_)] == expected
        assert len(live.model.modules(type="Linear")) == 3
        assert live.model.modules(type="Embedding") == []


def test_2_parameters_are_no_children_and_the_overwritten_get_no_gradient() -> None:
    with served(Head()) as live:
        names = [child.name for child in live.model.children()]
        assert names == [name for name, _ in live.module.named_children()] == ["mlp"]
        assert {"w", "b"} <= {parameter.path for parameter in live.model.parameters()}

        live.module(torch.randn(4, 1)).sum().backward()
        assert {parameter.path: parameter.has_grad for parameter in live.model.parameters()} == {
            path: parameter.grad is not None for path, parameter in live.module.named_parameters()
        }
        assert [parameter.path for parameter in live.model.parameters() if parameter.has_grad] == ["w", "b"]
        assert bits(live.model.read("w", what="grad")) == bits(live.module.get_parameter("w").grad)
        with pytest.raises(FailedPrecondition) as refusal:
            live.model.read("mlp.w1.weight", what="grad")
        assert refusal.value.reason == "NO_GRAD"
        assert "mlp.w1.weight" in str(refusal.value)


def test_2_a_linear_in_their_place_is_a_child() -> None:
    with served(HeadOfLinear()) as live:
        names = [child.name for child in live.model.children()]
        assert names == [name for name, _ in live.module.named_children()] == ["mlp", "w"]


@pytest.mark.parametrize("build", MODELS)
def test_3_named_modules(build: Callable[[], nn.Module]) -> None:
    with served(build()) as live:
        assert [(module.path, module.type, module.training) for module in live.model.modules()] == [
            (path, type(module).__name__, module.training) for path, module in live.module.named_modules()
        ]


def test_3_root_first_then_depth_first() -> None:
    with served(HeadOfLinear()) as live:
        assert [module.path for module in live.model.modules("*")] == [
            "", "mlp", "mlp.w1", "mlp.w2", "mlp.w3", "w"
        ]  # fmt: skip


@pytest.mark.parametrize("build", MODELS)
def test_4_named_parameters_and_buffers(build: Callable[[], nn.Module]) -> None:
    with served(build()) as live:
        parameters, buffers = live.model.parameters("*"), live.model.buffers("*")
        assert [(info.path, info.shape, info.numel) for info in parameters] == [
            (path, tuple(tensor.shape), tensor.numel()) for path, tensor in live.module.named_parameters()
        ]
        assert [(info.path, info.shape, info.dtype) for info in buffers] == [
            (path, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
            for path, tensor in live.module.named_buffers()
        ]
        assert live.client.models()[0].parameters == sum(
            tensor.numel() for tensor in live.module.parameters()
        )


def test_4_shapes_counts_and_one_by_name() -> None:
    with served(MLP()) as live:
        parameters = live.model.parameters()
        assert [list(info.shape) for info in parameters] == [[3, 1], [3], [3, 3], [3], [1, 3], [1]]
        assert [info.numel for info in parameters] == [3, 3, 9, 3, 3, 1]
        (one,) = live.model.parameters("w2.weight")
        assert (one.path, one.module_type, one.dtype, one.requires_grad) == (
            "w2.weight",
            "Linear",
            "float32",
            True,
        )
        assert bits(live.model.read("w2.weight")) == bits(live.module.get_parameter("w2.weight"))
        assert live.model.buffers() == []


def test_5_a_wrong_shape_is_refused_where_pytorch_is_silent() -> None:
    layer = nn.Linear(5, 4)
    layer.weight = nn.Parameter(torch.randn(5, 4))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        layer(torch.randn(2, 5))

    with served(nn.Linear(5, 4)) as live:
        before = raw(live.module.get_parameter("weight"))
        with pytest.raises(InvalidArgument) as refusal:
            live.model.write("weight", torch.randn(5, 4).numpy())
        assert refusal.value.reason == "SHAPE_MISMATCH"
        assert "[5, 4]" in str(refusal.value)
        assert "[4, 5]" in str(refusal.value)
        assert raw(live.module.get_parameter("weight")) == before


def test_5_a_right_shape_keeps_the_tensor_and_the_optimizer_goes_on() -> None:
    module = nn.Linear(5, 4)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    with served(module, optimizer) as live:
        tensor, pointer = module.weight, module.weight.data_ptr()
        array = torch.randn(4, 5).numpy()
        operation = live.model.write("weight", array)
        assert (operation.kind, operation.paths, operation.outcome) == ("write", ("weight",), "applied")
        assert module.weight is tensor
        assert module.weight.data_ptr() == pointer
        assert raw(module.weight) == array.tobytes()

        twin = nn.Linear(5, 4)
        twin.load_state_dict(module.state_dict())
        twin_optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
        x = torch.randn(3, 5)
        for each, its_optimizer in ((module, optimizer), (twin, twin_optimizer)):
            its_optimizer.zero_grad()
            each(x).square().sum().backward()
            its_optimizer.step()
        assert raw(module.weight) == raw(twin.weight) != array.tobytes()
        assert bits(live.model.read("weight")) == bits(twin.weight)


def test_6_default_initialisation() -> None:
    fan_in, fan_out = 400, 1000
    with served(nn.Linear(fan_in, fan_out)) as live:
        live.model.write("weight", fill=0.0)
        live.model.write("bias", fill=0.0)
        live.model.reinitialize("*", type="Linear", scheme="reset_parameters")
        bound = math.sqrt(1 / fan_in)
        for path in ("weight", "bias"):
            values = numpy.sort(live.model.read(path).ravel())
            assert -bound <= values[0] < -0.9 * bound
            assert 0.9 * bound < values[-1] <= bound
            uniform = (values + bound) / (2 * bound)
            # Kolmogorov-Smirnov: 1.95 / sqrt(n) is exceeded once in a thousand draws; 3 in 30 million.
            distance = numpy.abs(uniform - (numpy.arange(values.size) + 0.5) / values.size).max()
            assert distance < 3 / math.sqrt(values.size)

        live.model.reinitialize("*", seed=11)
        twin = nn.Linear(fan_in, fan_out)
        torch.manual_seed(11)
        twin.reset_parameters()
        assert bits(live.model.read("weight")) == bits(twin.weight)
        assert bits(live.model.read("bias")) == bits(twin.bias)


def test_7_apply_init_weights() -> None:
    module, twin = HeadOfLinear(), HeadOfLinear()
    twin.load_state_dict(module.state_dict())
    with served(module) as live:
        biases = {path: raw(tensor) for path, tensor in module.named_parameters() if path.endswith("bias")}
        generator = torch.get_rng_state()
        operation = live.model.reinitialize(
            "*", type="Linear", scheme="normal_", mean=0.0, std=0.02, parameter="weight", seed=7
        )
        assert torch.equal(torch.get_rng_state(), generator)

        torch.manual_seed(7)
        order: list[str] = []
        paths = {part: path for path, part in twin.named_modules()}
        twin.apply(lambda part: order.append(paths[part]) if isinstance(part, nn.Linear) else None)
        twin.apply(init_weights)
        assert operation.paths == tuple(f"{path}.weight" for path in order)
        for path, tensor in twin.named_parameters():
            assert bits(live.model.read(path)) == bits(tensor), path
        assert biases == {path: raw(tensor) for path, tensor in module.named_parameters() if path in biases}


def test_8_two_watchers_on_one_module() -> None:
    module = MLP()
    inputs = [torch.randn(4, 1) for _ in range(5)]
    outputs: list[torch.Tensor] = []
    with served(module) as live:
        module(inputs[0])
        module.w2.register_forward_hook(lambda _, args, output: outputs.append(output.detach().clone()))
        before = hook_counts(module)
        with live.model.watch("w2", payload="tensor") as staying:
            with live.model.watch("w2", payload="tensor") as leaving:
                for x in inputs[:3]:
                    module(x)
                seen = [list(itertools.islice(events, 3)) for events in (staying, leaving)]
            for events in seen:
                assert [event.seq for event in events] == [0, 1, 2]
                assert [event.call for event in events] == [0, 1, 2]
                assert {(event.path, event.type, event.hook) for event in events} == {
                    ("w2", "Linear", "forward")
                }
                got = [value for event in events for value in event.values if value.role == "output"]
                assert [bits(value.array) for value in got] == [bits(output) for output in outputs]
            module(inputs[3])
            (last,) = itertools.islice(staying, 1)
            assert last.seq == 3
            assert bits(last.values[-1].array) == bits(outputs[3])
            assert last.dropped == 0
        assert hook_counts(module) == before
        assert [hook.owner for hook in live.model.hooks()] == ["safe point"] * len(live.model.hooks())
        module(inputs[4])
        assert len(outputs) == 5


def test_9_all_four_kinds_of_hook() -> None:
    module = MLP()
    expected: dict[str, list[tuple[str, torch.Tensor | None]]] = {}

    def note(kind: str, *sides: tuple[str, Any]) -> None:
        expected[kind] = [
            (role, None if tensor is None else tensor.detach().clone())
            for role, side in sides
            for tensor in side
        ]

    module.w2.register_forward_pre_hook(lambda _, args: note("forward_pre", ("input", args)))
    module.w2.register_full_backward_pre_hook(lambda _, grads: note("backward_pre", ("grad_output", grads)))
    module.w2.register_full_backward_hook(
        lambda _, inner, outer: note("backward", ("grad_input", inner), ("grad_output", outer))
    )
    kinds = ("forward_pre", "forward", "backward_pre", "backward")
    with served(module) as live:
        x = torch.randn(4, 1)
        with live.model.watch("w2", hooks=kinds, payload="tensor") as events:
            output = module(x)
            output.sum().backward()
            seen = {event.hook: event for event in itertools.islice(events, 4)}
        assert list(seen) == list(kinds)
        for kind, tensors in expected.items():
            got = [(value.role, bits(value.array)) for value in seen[kind].values]
            assert sorted(got) == sorted((role, bits(tensor)) for role, tensor in tensors), kind


@pytest.mark.parametrize("build", MODELS)
def test_10_state_dict_there_and_back(build: Callable[[], nn.Module], tmp_path: Path) -> None:
    module = build()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    with served(module, optimizer) as live:
        saved = {key: bits(tensor) for key, tensor in module.state_dict().items()}
        arrays = live.model.state_dict()
        assert list(arrays) == list(module.state_dict())
        assert {key: bits(array) for key, array in arrays.items()} == saved

        live.model.save_state_dict(tmp_path / "model.safetensors")
        inputs = next(module.parameters()).shape[-1]
        module(torch.randn(8, inputs)).square().sum().backward()
        optimizer.step()
        assert {key: bits(tensor) for key, tensor in module.state_dict().items()} != saved

        result = live.model.load_state_dict(tmp_path / "model.safetensors")
        assert (result.missing_keys, result.unexpected_keys) == ([], [])
        assert {key: bits(tensor) for key, tensor in module.state_dict().items()} == saved
        assert {key: bits(array) for key, array in live.model.state_dict().items()} == saved


def test_10_keys_that_do_not_fit_are_told_as_pytorch_tells_them() -> None:
    with served(WithNorm()) as live:
        arrays = live.model.state_dict()
        arrays["extra"] = arrays.pop("norm.running_mean")
        with pytest.raises(FailedPrecondition) as refusal:
            live.model.load_state_dict(arrays)
        assert refusal.value.reason == "KEYS_MISMATCH"
        result = live.model.load_state_dict(arrays, strict=False)
        expected = live.module.load_state_dict(
            {key: torch.from_numpy(array) for key, array in arrays.items()}, strict=False
        )
        assert result.missing_keys == expected.missing_keys == ["norm.running_mean"]
        assert result.unexpected_keys == expected.unexpected_keys == ["extra"]
