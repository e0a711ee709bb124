"""The zoo over the wire: modules, parameters, buffers, state_dict, outputs equal to PyTorch, bit for bit."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from modscope_client.errors import FailedPrecondition
from modscope_client.types import BufferInfo, ParameterInfo
from tests.end_to_end.serving import Served, bits, served
from tests.models import WRAPPED, ZOO, unreadable
from tests.plain_models import MLP

Named = Sequence[tuple[str, torch.Tensor]]


@pytest.fixture(scope="module", params=ZOO)
def live(request: pytest.FixtureRequest) -> Iterator[Served]:
    with served(ZOO[request.param].build(), writable=False) as live:
        yield live


def readable(tensor: torch.Tensor) -> bool:
    return not is_lazy(tensor) and not tensor.is_meta


def elements(parameters: Iterable[torch.Tensor]) -> int:
    return sum(parameter.numel() for parameter in parameters if not is_lazy(parameter))


def others(path: str, thing: object, everywhere: Sequence[tuple[str, Any]]) -> tuple[str, ...]:
    return tuple(name for name, other in everywhere if other is thing and name != path)


def test_modules(live: Served) -> None:
    everywhere = list(live.module.named_modules(remove_duplicate=False))
    expected = [
        (
            path,
            path.rpartition(".")[2],
            type(module).__name__,
            f"{type(module).__module__}.{type(module).__qualname__}",
            module.training,
            len(list(module.children())),
            elements(module.parameters()),
            elements(parameter for parameter in module.parameters() if parameter.requires_grad),
            others(path, module, everywhere),
        )
        for path, module in live.module.named_modules()
    ]
    assert [
        (
            info.path,
            info.name,
            info.type,
            info.qualified_type,
            info.training,
            info.children,
            info.parameters,
            info.trainable_parameters,
            info.aliases,
        )
        for info in live.model.modules()
    ] == expected
    info = live.client.models()[0]
    assert (info.modules, info.parameters) == (len(expected), expected[0][6])


def test_children(live: Served) -> None:
    for path, module in live.module.named_modules():
        assert [child.name for child in live.model.children(path)] == [
            name for name, _ in module.named_children()
        ]


def test_print(live: Served) -> None:
    try:
        expected = repr(live.module)
    except RuntimeError:
        expected = str(live.model)
        assert expected == "<Rude: repr raised RuntimeError: no repr today>"
    assert str(live.model) == expected


def check_tensors(infos: list[Any], named: Named, everywhere: Named, owners: Mapping[str, nn.Module]) -> None:
    assert [info.path for info in infos] == [path for path, _ in named]
    for info, (path, tensor) in zip(infos, named, strict=True):
        lazy = is_lazy(tensor)
        assert info.dtype == str(tensor.dtype).removeprefix("torch."), path
        assert info.requires_grad is tensor.requires_grad, path
        assert info.has_grad is (tensor.grad is not None), path
        assert info.device == str(tensor.device), path
        assert info.tied_with == others(path, tensor, everywhere), path
        assert info.module_type == type(owners[path.rpartition(".")[0]]).__name__, path
        assert bool(info.unreadable) is not readable(tensor), path
        if not lazy:
            assert (info.shape, info.numel) == (tuple(tensor.shape), tensor.numel()), path


def test_parameters(live: Served) -> None:
    infos: list[ParameterInfo] = live.model.parameters()
    everywhere = list(live.module.named_parameters(remove_duplicate=False))
    check_tensors(infos, list(live.module.named_parameters()), everywhere, dict(live.module.named_modules()))


def test_buffers(live: Served) -> None:
    infos: list[BufferInfo] = live.model.buffers()
    everywhere = list(live.module.named_buffers(remove_duplicate=False))
    check_tensors(infos, list(live.module.named_buffers()), everywhere, dict(live.module.named_modules()))
    persistent = live.module.state_dict()
    assert [info.persistent for info in infos] == [
        path in persistent for path, _ in live.module.named_buffers()
    ]


def test_values(live: Served) -> None:
    tensors = dict([*live.module.named_parameters(), *live.module.named_buffers()])
    paths = [path for path, tensor in tensors.items() if readable(tensor)]
    if paths:
        arrays = live.model.read(paths)
        assert list(arrays) == paths
        for path in paths:
            assert bits(arrays[path]) == bits(tensors[path]), path
            assert bits(live.model.read(path)) == bits(tensors[path]), path
    for path in tensors.keys() - set(paths):
        with pytest.raises(FailedPrecondition) as refusal:
            live.model.read(path)
        assert refusal.value.reason == "NOT_MATERIALIZED"


def test_state_dict(live: Served) -> None:
    expected = live.module.state_dict()
    keys = live.model.state_dict_keys()
    assert [entry.key for entry in keys.entries] == list(expected)
    if not all(map(readable, expected.values())):
        with pytest.raises(FailedPrecondition) as refusal:
            live.model.state_dict()
        assert refusal.value.reason == "NOT_MATERIALIZED"
        return
    arrays = live.model.state_dict()
    assert list(arrays) == list(expected)
    for key, tensor in expected.items():
        assert bits(arrays[key]) == bits(tensor), key


def same(got: Any, expected: Any, where: str = "output") -> int:
    """Compares structure and tensors; gives the number of tensors."""
    if isinstance(expected, torch.Tensor):
        assert bits(got) == bits(expected), where
        return 1
    if dataclasses.is_dataclass(expected) and not isinstance(expected, (type, dict)):
        expected = {field.name: getattr(expected, field.name) for field in dataclasses.fields(expected)}
    if isinstance(expected, Mapping):
        assert isinstance(got, dict), where
        assert list(got) == list(expected), where
        return sum(same(got[key], expected[key], f"{where}.{key}") for key in expected)
    if isinstance(expected, (tuple, list)):
        assert type(got) is (tuple if isinstance(expected, tuple) else list), where
        assert len(got) == len(expected), where
        return sum(
            same(one, other, f"{where}.{at}")
            for at, (one, other) in enumerate(zip(got, expected, strict=True))
        )
    if expected is None or isinstance(expected, (bool, int, float, str)):
        assert got == expected, where
    return 0


@pytest.mark.parametrize("name", [name for name, entry in ZOO.items() if entry.runs])
def test_forward(name: str) -> None:
    entry = ZOO[name]
    module, twin = entry.build(), entry.build()
    args, kwargs = entry.inputs()
    with torch.no_grad():
        torch.manual_seed(0)
        expected = twin.eval()(*args, **kwargs)
    with served(module, writable=False) as live:
        if name == "lazy":
            with pytest.raises(FailedPrecondition) as refusal:
                live.model.forward(*args, **kwargs)
            assert refusal.value.reason == "NOT_MATERIALIZED"
            torch.manual_seed(0)
            module.eval()(*args, **kwargs)
        got = live.model.forward(*args, **kwargs)
    assert same(got, expected) >= 1


@pytest.mark.parametrize("name", WRAPPED)
def test_wrapped(name: str) -> None:
    with served(WRAPPED[name].build(), writable=False) as live:
        bare = nn.Sequential(MLP(), nn.BatchNorm1d(1))
        assert [info.path for info in live.model.modules()] == [path for path, _ in bare.named_modules()]
        parameters = dict(live.module.named_parameters())
        infos = live.model.parameters()
        assert [info.path for info in infos] == [path for path, _ in bare.named_parameters()]
        assert [info.raw_path for info in infos] == list(parameters)
        for info in infos:
            expected = bits(parameters[info.raw_path])
            assert bits(live.model.read(info.path)) == bits(live.model.read(info.raw_path)) == expected
        modules = dict(live.module.named_modules())
        assert all(type(modules[info.raw_path]).__name__ == info.type for info in live.model.modules())
        assert any(info.wrappers for info in live.model.modules())
        arrays, expected_state = live.model.state_dict(), live.module.state_dict()
        assert list(arrays) == list(expected_state)
        assert all(bits(arrays[key]) == bits(tensor) for key, tensor in expected_state.items())


def test_tensors_without_plain_bytes_are_listed_with_the_reason() -> None:
    with served(unreadable(), writable=False) as live:
        infos = {info.path: info for info in (*live.model.parameters(), *live.model.buffers())}
        names = [path for path, _ in (*live.module.named_parameters(), *live.module.named_buffers())]
        assert list(infos) == names
        for path, info in infos.items():
            assert bool(info.unreadable) is (path != "plain")
            if info.unreadable:
                with pytest.raises(FailedPrecondition) as refusal:
                    live.model.read(path)
                assert refusal.value.reason == "NOT_MATERIALIZED"
                assert path in str(refusal.value)
