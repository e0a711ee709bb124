"""Modules, children, counts and aliases against PyTorch's own listings."""

from __future__ import annotations

import sys
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from modscope_server.errors import UnknownPath
from modscope_server.inspection.records import ModuleRecord
from modscope_server.inspection.structure import (
    MAX_REPR_BYTES,
    child_records,
    find_module,
    is_instance,
    located_modules,
    module_record,
    module_records,
    module_text,
)
from tests.models import FAMILIES, MLP, WRAPPED, ZOO, wide


def elements(module: nn.Module, trainable: bool = False) -> int:
    """PyTorch's own count of the parameter elements below a module, ties once."""
    found = [p for p in module.parameters() if not isinstance(p, nn.UninitializedParameter)]
    return sum(p.numel() for p in found if p.requires_grad or not trainable)


def assert_like_pytorch(root: nn.Module) -> None:
    """Every field of every record against PyTorch; only for models without wrappers and cycles."""
    records = module_records(root)
    named = list(root.named_modules())
    assert [record.path for record in records] == [name for name, _ in named]
    everywhere: dict[int, list[str]] = {}
    for name, module in root.named_modules(remove_duplicate=False):
        everywhere.setdefault(id(module), []).append(name)
    for record, (name, module) in zip(records, named, strict=True):
        assert record == ModuleRecord(
            path=name,
            name=name.rpartition(".")[2],
            type=type(module).__name__,
            qualified_type=f"{type(module).__module__}.{type(module).__qualname__}",
            training=module.training,
            children=len(list(module.children())),
            parameters=elements(module),
            trainable_parameters=elements(module, trainable=True),
            aliases=tuple(everywhere[id(module)][1:]),
            raw_path=name,
            wrappers=(),
        )


@pytest.mark.parametrize("name", ZOO)
def test_the_zoo_is_listed_as_pytorch_lists_it(name: str) -> None:
    root = ZOO[name].build()
    assert_like_pytorch(root)
    if name not in FAMILIES:
        root.train(not root.training)
        assert_like_pytorch(root)
    assert [(one.path, one.module) for one in located_modules(root)] == list(root.named_modules())


@pytest.mark.parametrize("name", ZOO)
def test_children_are_named_children(name: str) -> None:
    root = ZOO[name].build()
    whole = {record.path: record for record in module_records(root)}
    modules = dict(root.named_modules(remove_duplicate=False))
    for path, module in list(root.named_modules())[:25]:
        children = child_records(root, path)
        expected = [f"{path}.{name}" if path else name for name, _ in module.named_children()]
        assert [child.path for child in children] == expected
        assert len(children) == whole[path].children
        for child in children:
            assert find_module(root, child.path) is modules[child.path]
            first = whole.get(child.path)
            assert first is None or child == first
            assert module_record(root, child.path).path in (child.path, *child.aliases)


@st.composite
def graphs(draw: st.DrawFn) -> nn.Module:
    """Models whose modules and parameters stand at several places, without cycles."""
    size = draw(st.integers(1, 9))
    modules = [nn.Module() for _ in range(size)]
    pool = [nn.Parameter(torch.zeros(n + 1), requires_grad=n % 3 != 0) for n in range(6)]
    for position, module in enumerate(modules):
        for number in range(draw(st.integers(0, 3))):
            module.register_parameter(f"p{number}", draw(st.sampled_from([*pool, None])))
        later = modules[position + 1 :]
        for number in range(draw(st.integers(0, 3)) if later else 0):
            module.add_module(f"m{number}", draw(st.sampled_from([*later, None])))
    return modules[0]


@given(graphs())
def test_any_way_of_sharing_is_listed_as_pytorch_lists_it(root: nn.Module) -> None:
    assert_like_pytorch(root)


@given(graphs())
def test_children_and_subtrees_of_shared_modules(root: nn.Module) -> None:
    for path, module in list(root.named_modules(remove_duplicate=False))[:20]:
        assert [(c.path.rpartition(".")[2], c.parameters) for c in child_records(root, path)] == [
            (name, elements(child)) for name, child in module.named_children()
        ]
        below = module_records(root, under=path)
        assert [record.path for record in below] == [name for name, _ in module.named_modules(prefix=path)]


def test_a_child_that_refers_back_to_its_parent_ends() -> None:
    root = MLP()
    root.w1.add_module("owner", root)
    records = {record.path: record for record in module_records(root)}
    assert list(records) == [name for name, _ in root.named_modules()]
    assert records[""].aliases == ("w1.owner",)
    assert records[""].parameters == records["w1"].parameters == elements(root) == elements(root.w1)
    assert records["w2"].parameters == elements(root.w2)
    assert find_module(root, "w1.owner.w2") is root.w2
    assert [child.path for child in child_records(root, "w1")] == ["w1.owner"]


def test_sharing_within_sharing_does_not_explode() -> None:
    root: nn.Module = nn.Linear(2, 3)
    for _ in range(60):
        above = nn.Module()
        above.add_module("left", root)
        above.add_module("right", root)
        root = above
    records = module_records(root)
    assert [record.path for record in records] == [name for name, _ in root.named_modules()]
    assert {record.parameters for record in records} == {9}
    assert records[1].aliases == ("right",)
    assert records[-1].aliases[0].endswith(".left.right")


def test_a_model_too_deep_for_recursion() -> None:
    depth = max(3_000, sys.getrecursionlimit() * 2)
    bottom = nn.Linear(2, 2)
    root: nn.Module = bottom
    for _ in range(depth):
        above = nn.Module()
        above.add_module("x", root)
        above.register_parameter("tie", bottom.bias)
        root = above
    records = module_records(root)
    assert len(records) == depth + 1
    assert records[-1].path == ".".join("x" * depth)
    assert {record.parameters for record in records} == {6}
    assert find_module(root, records[-1].path) is bottom
    assert module_text(root, "").startswith("<Module: repr raised RecursionError")


def test_a_hundred_thousand_modules_list_as_pytorch_names_them() -> None:
    root = wide(100_000)
    records = module_records(root)
    assert len(records) > 100_000
    assert [record.path for record in records] == [path for path, _ in root.named_modules()]
    assert records[0].parameters == 2 * sum(record.type == "Linear" for record in records)


@pytest.mark.parametrize("name", WRAPPED)
def test_wrapper_prefixes_are_left_out(name: str) -> None:
    root = WRAPPED[name].build()
    plain = nn.Sequential(MLP(), nn.BatchNorm1d(1))
    records = module_records(root)
    assert [record.path for record in records] == [path for path, _ in plain.named_modules()]
    assert [record.type for record in records] == [type(module).__name__ for module in plain.modules()]
    assert [record.children for record in records] == [
        len(list(module.children())) for module in plain.modules()
    ]
    assert [record.parameters for record in records] == [elements(module) for module in plain.modules()]
    for record in records:
        module = find_module(root, record.path)
        assert record.raw_path == next(path for path, other in root.named_modules() if other is module)
        assert find_module(root, record.raw_path) is module
        assert module_record(root, record.raw_path) == record
        assert [c.path for c in child_records(root, record.raw_path)] == [
            c.path for c in records if c.path and c.path.rpartition(".")[0] == record.path
        ]


def test_wrappers_are_named_outermost_first() -> None:
    records = {record.path: record for record in module_records(WRAPPED["wrapped_twice"].build())}
    assert records[""].wrappers == ("DataParallel",)
    assert records["0"].wrappers == ("CheckpointWrapper",)
    assert records["0"].raw_path == "module.0._checkpoint_wrapped_module"
    assert records["0.w1"].wrappers == ()
    around = nn.DataParallel(torch.optim.swa_utils.AveragedModel(MLP()))
    assert module_record(around, "").wrappers == ("DataParallel", "AveragedModel")
    assert module_record(around, "w1").raw_path == "module.module.w1"


def test_a_wrapper_is_told_by_its_class_and_a_subclass_is_one_too() -> None:
    names = {"__module__": "torch.distributed.fsdp.fully_sharded_data_parallel"}
    stand_in = type("FullyShardedDataParallel", (nn.Module,), names)
    root = type("Mine", (stand_in,), {})()
    root._fsdp_wrapped_module = nn.Sequential(stand_in(), MLP())
    root.extra = nn.ReLU()
    assert [(record.path, record.type, record.children) for record in module_records(root)][:3] == [
        ("", "Sequential", 3),
        ("0", "FullyShardedDataParallel", 0),
        ("1", "MLP", 3),
    ]
    assert module_records(root)[0].wrappers == ("Mine",)
    assert [child.path for child in child_records(root, "")] == ["0", "1", "extra"]
    assert [child.path for child in child_records(nn.DataParallel(root), "")] == ["0", "1", "extra"]


def test_a_child_of_ones_own_named_module_is_kept() -> None:
    root = nn.Module()
    root.module = nn.Linear(2, 2)
    root.register_parameter("weight", nn.Parameter(torch.ones(1)))
    assert_like_pytorch(root)
    around = nn.DataParallel(root)
    assert [record.path for record in module_records(around)] == ["", "module"]
    assert find_module(around, "module") is root.module
    assert find_module(around, "module.module") is root.module
    assert find_module(around, "") is root


def test_raw_names_throughout_where_two_paths_would_become_one() -> None:
    inner = nn.Sequential(MLP())
    inner.register_buffer("n_averaged", torch.zeros(2))
    root = torch.optim.swa_utils.AveragedModel(inner)
    assert_like_pytorch(root)
    assert find_module(root, "") is root
    assert find_module(root, "module") is root.module
    assert [child.path for child in child_records(root, "")] == ["module"]
    assert [child.path for child in child_records(root, "module")] == ["module.0"]


def test_a_path_is_found_by_any_of_its_names() -> None:
    root = ZOO["shared"].build()
    for path, module in root.named_modules(remove_duplicate=False):
        assert find_module(root, path) is module
        assert module_record(root, path).path == next(n for n, m in root.named_modules() if m is module)


def test_names_of_all_kinds() -> None:
    root = nn.Module()
    for name in ("with space", "new\nline", "slash/y", "größe", "*", "[a]", "weight"):
        root.add_module(name, nn.Linear(1, 1))
    setattr(root, "a.b", nn.Sequential(nn.Linear(1, 1)))
    assert_like_pytorch(root)
    for path, module in root.named_modules():
        assert find_module(root, path) is module
    assert find_module(root, "a.b.0") is getattr(root, "a.b")[0]


@pytest.mark.parametrize(
    "path", ["nope", "w1.weight", "w1.", ".w1", "forward", "__class__", "w1.in_features", "w1..", "."]
)
def test_what_is_no_module_is_an_unknown_path(path: str) -> None:
    with pytest.raises(UnknownPath) as caught:
        find_module(MLP(), path)
    assert caught.value.reason == "UNKNOWN_PATH"
    assert caught.value.hint


def test_an_unknown_path_says_what_may_have_been_meant() -> None:
    root = nn.Sequential(MLP())
    with pytest.raises(UnknownPath) as caught:
        find_module(root, "0.w11")
    assert "0.w1" in caught.value.hint
    with pytest.raises(UnknownPath) as caught:
        find_module(root, "w2")
    assert "0.w2" in caught.value.hint
    with pytest.raises(UnknownPath) as caught:
        find_module(root, "." * 100_000)
    assert len(caught.value.message) < 400


def test_no_property_is_ever_run() -> None:
    root = nn.Sequential(ZOO["rude"].build())
    with pytest.raises(UnknownPath):
        find_module(root, "0.weight")
    assert module_record(root, "0").parameters == 6
    text = module_text(root, "0")
    assert text == "<Rude: repr raised RuntimeError: no repr today>"


@pytest.mark.parametrize("name", [name for name in ZOO if name != "rude"])
def test_text_is_repr(name: str) -> None:
    root = ZOO[name].build()
    assert module_text(root, "") == repr(root)
    for path, module in root.named_children():
        assert module_text(root, path) == repr(module)


@pytest.mark.parametrize("name", WRAPPED)
def test_text_of_a_wrapped_model_shows_the_wrapper(name: str) -> None:
    root = WRAPPED[name].build()
    assert module_text(root, "") == repr(root)
    for path, module in root.named_modules():
        if path.endswith((".1", "w1")):
            assert module_text(root, path) == repr(module)


def test_text_is_cut_to_64_kib() -> None:
    class Wordy(nn.Module):
        def extra_repr(self) -> str:
            return "ü" * MAX_REPR_BYTES + "\ud800"

    text = module_text(Wordy(), "")
    assert text.startswith("Wordy(üü")
    assert text.endswith("(cut at 64 KiB)")
    assert MAX_REPR_BYTES - 4 < len(text.encode()) <= MAX_REPR_BYTES


def test_type_names() -> None:
    linear = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
    assert type(linear).__name__ != "Linear"
    for name in (
        "Linear",
        "torch.nn.Linear",
        "torch.nn.modules.linear.Linear",
        "torch.nn.modules.Linear",
        "Module",
    ):
        assert is_instance(linear, name), name
    for name in (
        "Conv2d",
        "torch.Linear",
        "linear",
        "torch.nn.Conv2d",
        "nowhere.Linear",
        "",
        "Lin",
        "object",
    ):
        assert not is_instance(linear, name), name
    assert is_instance(MLP(), "tests.models.MLP")
    assert is_instance(MLP(), "tests.plain_models.MLP")
    assert is_instance(nn.DataParallel(MLP()), "torch.nn.parallel.DataParallel")


def test_type_names_import_nothing() -> None:
    root = ZOO["bert"].build()
    loaded = set(sys.modules)
    assert is_instance(root, "transformers.BertForMaskedLM")
    assert is_instance(root, "transformers.PreTrainedModel")
    assert not is_instance(root, "transformers.GPTNeoXForCausalLM")
    assert not is_instance(root, "transformers.BertModel")
    assert not is_instance(root, "wave.Error")
    assert set(sys.modules) == loaded


def test_listing_while_modules_come_and_go() -> None:
    root = wide(300)
    stop = threading.Event()

    def churn() -> None:
        count = 0
        while not stop.is_set():
            name = f"new{count % 50}"
            if name in root._modules:
                del root._modules[name]
            else:
                root.add_module(name, nn.Sequential(nn.ReLU()))
            count += 1

    thread = threading.Thread(target=churn, daemon=True)
    thread.start()
    try:
        for _ in range(60):
            assert len(module_records(root)) >= 300
            assert child_records(root, "")
    finally:
        stop.set()
        thread.join()
