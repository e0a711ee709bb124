"""Parameters and buffers against PyTorch's own listings, and found by every name they have."""

from __future__ import annotations

import time
import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam

from modscope_server.errors import BadRequest, NoGrad, UnknownPath
from modscope_server.inspection.optimizers import Groups
from modscope_server.inspection.parameters import (
    find_tensor,
    located_buffers,
    located_parameters,
    records_of,
    tensor_of,
    tensor_record,
)
from modscope_server.inspection.structure import module_records
from tests.models import MLP, WRAPPED, ZOO, unreadable, wide


def everywhere(named: list[tuple[str, torch.Tensor]]) -> dict[int, list[str]]:
    paths: dict[int, list[str]] = {}
    for name, tensor in named:
        paths.setdefault(id(tensor), []).append(name)
    return paths


@pytest.mark.parametrize("name", ZOO)
def test_parameters_are_named_parameters(name: str) -> None:
    root = ZOO[name].build()
    named = list(root.named_parameters())
    located = located_parameters(root)
    assert [one.path for one in located] == [path for path, _ in named]
    assert all(one.tensor is tensor for one, (_, tensor) in zip(located, named, strict=True))
    paths = everywhere(list(root.named_parameters(remove_duplicate=False)))
    modules = dict(root.named_modules())
    for one, record in zip(located, records_of(located_parameters(root)), strict=True):
        tensor = one.tensor
        lazy = isinstance(tensor, nn.UninitializedParameter)
        assert one.aliases == record.tied_with == tuple(paths[id(tensor)][1:])
        assert one.raw_path == record.raw_path == one.path == record.path
        assert one.owner is modules[one.owner_path]
        assert dict(one.owner.named_parameters(recurse=False))[one.name] is tensor
        assert record.shape == (() if lazy else tuple(tensor.shape))
        assert record.numel == (0 if lazy else tensor.numel())
        assert f"torch.{record.dtype}" == str(tensor.dtype)
        assert record.device == str(tensor.device)
        assert record.requires_grad is tensor.requires_grad
        assert (record.has_grad, record.optimizer, record.persistent) == (False, None, None)
        assert record.module_type == type(one.owner).__name__
        assert bool(record.unreadable) is (lazy or tensor.is_meta)


@pytest.mark.parametrize("name", ZOO)
def test_buffers_are_named_buffers(name: str) -> None:
    root = ZOO[name].build()
    named = list(root.named_buffers())
    located = located_buffers(root)
    assert [one.path for one in located] == [path for path, _ in named]
    assert all(one.tensor is tensor for one, (_, tensor) in zip(located, named, strict=True))
    carried = {key for key in root.state_dict(keep_vars=True) if not key.endswith("_extra_state")}
    paths = everywhere(list(root.named_buffers(remove_duplicate=False)))
    for one, record in zip(located, records_of(located_buffers(root)), strict=True):
        assert record.persistent is one.persistent is (one.path in carried)
        assert record.tied_with == tuple(paths[id(one.tensor)][1:])
        assert f"torch.{record.dtype}" == str(one.tensor.dtype)


@pytest.mark.parametrize("name", ZOO)
def test_every_name_finds_its_tensor(name: str) -> None:
    root = ZOO[name].build()
    for path, parameter in root.named_parameters(remove_duplicate=False):
        found = find_tensor(root, path)
        assert (found.tensor is parameter, found.path, found.persistent) == (True, path, None)
        record = tensor_record(root, path)
        assert path in (record.path, *record.tied_with)
    for path, buffer in root.named_buffers(remove_duplicate=False):
        found = find_tensor(root, path)
        assert found.tensor is buffer
        assert found.persistent is not None


@pytest.mark.parametrize("name", WRAPPED)
def test_wrapper_prefixes_are_left_out(name: str) -> None:
    root = WRAPPED[name].build()
    plain = nn.Sequential(MLP(), nn.BatchNorm1d(1))
    located = located_parameters(root)
    assert [one.path for one in located] == [path for path, _ in plain.named_parameters()]
    own = [path for path, _ in plain.named_buffers()]
    assert [one.path for one in located_buffers(root)] == (
        ["n_averaged", *own] if name == "averaged" else own
    )
    for one in located + located_buffers(root):
        owner_path, _, leaf = one.raw_path.rpartition(".")
        assert one.tensor is getattr(dict(root.named_modules())[owner_path], leaf)
        for path in (one.path, one.raw_path):
            found = find_tensor(root, path)
            assert (found.tensor is one.tensor, found.path, found.raw_path) == (True, one.path, one.raw_path)
            assert found.owner is one.owner
            assert found.owner_path == one.owner_path
        assert tensor_record(root, one.raw_path).path == one.path


def test_the_keys_of_a_checkpointed_models_state_dict_are_found() -> None:
    root = WRAPPED["wrapped_twice"].build()
    tensors = root.state_dict(keep_vars=True)
    assert all(find_tensor(root, key).tensor is tensor for key, tensor in tensors.items())


def test_raw_names_throughout_where_two_paths_would_become_one() -> None:
    inner = MLP()
    inner.register_buffer("n_averaged", torch.zeros(2))
    root = torch.optim.swa_utils.AveragedModel(inner)
    assert [one.path for one in located_parameters(root)] == [path for path, _ in root.named_parameters()]
    assert [one.path for one in located_buffers(root)] == ["n_averaged", "module.n_averaged"]
    assert find_tensor(root, "n_averaged").tensor is root.n_averaged
    found = find_tensor(root, "module.n_averaged")
    assert found.tensor is root.module.n_averaged
    assert (found.path, found.owner_path) == ("module.n_averaged", "module")


def test_a_name_behind_two_prefixes_has_one_meaning() -> None:
    inner = nn.Module()
    inner.module = nn.Linear(2, 2)
    inner.register_parameter("weight", nn.Parameter(torch.ones(1)))
    root = nn.DataParallel(inner)
    assert [one.path for one in located_parameters(root)] == ["weight", "module.weight", "module.bias"]
    assert find_tensor(root, "module.weight").tensor is inner.module.weight
    assert find_tensor(root, "weight").tensor is inner.weight
    assert find_tensor(root, "module.module.weight").tensor is inner.module.weight


def test_the_stored_tensors_of_a_parametrized_name_are_told() -> None:
    root = ZOO["parametrized"].build()
    before = {key: value.clone() for key, value in root.state_dict().items()}
    with pytest.raises(UnknownPath) as caught:
        find_tensor(root, "normed.weight")
    assert "normed.parametrizations.weight.original0" in caught.value.hint
    assert "normed.parametrizations.weight.original1" in caught.value.hint
    with pytest.raises(UnknownPath) as caught:
        find_tensor(root, "old.weight")
    assert "old.weight_orig" in caught.value.hint
    for path in ("bounded.weight", "spun.weight"):
        with pytest.raises(UnknownPath, match="no parameter or buffer"):
            find_tensor(root, path)
    assert all(torch.equal(before[key], value) for key, value in root.state_dict().items())


@pytest.mark.parametrize(
    ("path", "hinted"),
    [
        ("w1.wieght", "w1.weight"),
        ("w1", "w1.weight, w1.bias"),
        ("", "without tensors"),
        ("weight", "w1.weight"),
        ("w9.weight", "the root has: w1, w2, w3"),
        ("w1.weight.data", "w1"),
        ("w1.in_features", "weight"),
        ("w1.forward", "weight"),
        ("training", "the root has"),
    ],
)
def test_an_unknown_path_says_what_may_have_been_meant(path: str, hinted: str) -> None:
    with pytest.raises(UnknownPath) as caught:
        find_tensor(MLP(), path)
    assert caught.value.field == "path"
    assert hinted in caught.value.hint


def test_an_absent_parameter_is_no_path() -> None:
    root = nn.Sequential(
        nn.Linear(2, 2, bias=False), nn.BatchNorm1d(2, affine=False, track_running_stats=False)
    )
    for path in ("0.bias", "1.weight", "1.running_mean"):
        with pytest.raises(UnknownPath):
            find_tensor(root, path)
    assert [one.path for one in located_parameters(root)] == ["0.weight"]


def test_gradients_and_groups_are_told() -> None:
    root = MLP()
    root(torch.ones(2, 1)).sum().backward()
    root.w1.bias.grad = None
    pair: list[dict[str, Any]] = [{"params": [root.w1.weight]}, {"params": [root.w1.bias]}]
    first = SGD(pair, lr=0.1)
    second = Adam(root.w3.parameters())
    records = {
        record.path: record for record in records_of(located_parameters(root), Groups.of([first, second]))
    }
    assert {path: record.has_grad for path, record in records.items()} == {
        path: p.grad is not None for path, p in root.named_parameters()
    }
    assert {path: record.optimizer for path, record in records.items()} == {
        "w1.weight": 0,
        "w1.bias": 1,
        "w2.weight": None,
        "w2.bias": None,
        "w3.weight": 2,
        "w3.bias": 2,
    }


def test_the_tensor_that_a_read_asks_for() -> None:
    root = MLP()
    located = find_tensor(root, "w1.weight")
    groups = Groups.of([Adam(root.parameters())])
    assert tensor_of(located, "", groups) is tensor_of(located, "value", groups) is root.w1.weight
    with pytest.raises(NoGrad, match="no gradient now"):
        tensor_of(located, "grad", groups)
    root.w1.weight.requires_grad_(False)
    with pytest.raises(NoGrad, match="frozen"):
        tensor_of(located, "grad", groups)
    root.w1.weight.requires_grad_(True)
    root(torch.ones(2, 1)).sum().backward()
    assert tensor_of(located, "grad", groups) is root.w1.weight.grad
    with pytest.raises(BadRequest):
        tensor_of(located, "exp_avg")


def test_a_buffer_that_autograd_made_is_listed_without_a_warning() -> None:
    root = nn.Module()
    leaf = torch.ones(2, requires_grad=True)
    root.register_buffer("made", leaf * 2)
    root.register_buffer("kept", leaf * 3)
    root.kept.retain_grad()
    root.kept.sum().backward()
    assert [(r.path, r.requires_grad, r.has_grad) for r in records_of(located_buffers(root))] == [
        ("made", True, False),
        ("kept", True, True),
    ]


def test_what_cannot_be_read_is_listed_with_what_is_known() -> None:
    root = unreadable()
    records = {
        record.path: record
        for record in records_of(located_parameters(root)) + records_of(located_buffers(root))
    }
    assert {path: record.unreadable.partition(":")[0] for path, record in records.items()} == {
        "plain": "",
        "lazy": "uninitialized (lazy)",
        "meta": "meta",
        "sparse": "sparse (sparse_coo)",
        "nested": "nested",
        "quantized": "quantized (qint8)",
    }
    assert {path: (record.shape, record.numel) for path, record in records.items()} == {
        "plain": ((2,), 2),
        "lazy": ((), 0),
        "meta": ((2, 3), 6),
        "sparse": ((3, 3), 9),
        "nested": ((), 5),
        "quantized": ((2, 2), 4),
    }
    assert (records["quantized"].dtype, records["meta"].device) == ("qint8", "meta")


def test_a_subclass_is_listed_without_its_own_code() -> None:
    class Loud(torch.Tensor):
        @classmethod
        def __torch_function__(cls, *arguments: object, **keywords: object) -> object:
            raise RuntimeError("this subclass is not to be asked")

    root = nn.Linear(2, 2)
    root._parameters["loud"] = torch.ones(3).as_subclass(Loud)  # type: ignore[assignment]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nested tensors are a prototype
        root._buffers["jagged"] = torch.nested.nested_tensor(
            [torch.ones(2), torch.ones(3)], layout=torch.jagged
        )
    record = records_of(located_parameters(root), Groups.of([]))[-1]
    assert (record.path, record.shape, record.numel, record.unreadable) == ("loud", (3,), 3, "")
    assert module_records(root)[0].parameters == 9
    (jagged,) = records_of(located_buffers(root))
    assert jagged.shape == ()
    assert "NestedTensor" in jagged.unreadable


def test_one_tensor_of_a_large_model_is_found_without_a_walk() -> None:
    root = wide(20_000)

    def seconds(path: str) -> float:
        start = time.thread_time()
        for _ in range(100):
            find_tensor(root, path)
        return (time.thread_time() - start) / 100

    walked = time.thread_time()
    located_parameters(root)
    walked = time.thread_time() - walked
    assert min(seconds("block150.fc7.weight") for _ in range(3)) < walked / 200


def test_a_parameter_that_is_rebound_is_found_anew() -> None:
    root = MLP()
    old = find_tensor(root, "w1.weight").tensor
    root.w1.weight = nn.Parameter(torch.zeros(3, 1))
    assert find_tensor(root, "w1.weight").tensor is root.w1.weight is not old
