"""Globs and types to modules, parameters and buffers."""

from __future__ import annotations

from fnmatch import fnmatchcase

import pytest
from torch import nn

from modscope.paths import literal
from modscope_server.errors import BadGlobError
from modscope_server.inspection.selection import (
    select_located_buffers,
    select_located_parameters,
    select_module_records,
    select_modules,
)
from tests.models import MLP, WRAPPED, ZOO


def modules(root: nn.Module, glob: str = "*", type: str = "") -> list[str]:
    paths = [one.path for one in select_modules(root, glob, type)]
    assert [record.path for record in select_module_records(root, glob, type)] == paths
    return paths


def parameters(root: nn.Module, glob: str = "", type: str = "") -> list[str]:
    return [one.path for one in select_located_parameters(root, glob, type)]


def buffers(root: nn.Module, glob: str = "", type: str = "") -> list[str]:
    return [one.path for one in select_located_buffers(root, glob, type)]


@pytest.mark.parametrize(
    "glob", ["*", "*.attn*", "*weight", "?lm_head", "*[0]*", "*[!0-9].*", "transformer.h.1.*", "lm_head"]
)
def test_globs_select_what_fnmatch_selects(glob: str) -> None:
    root = ZOO["gpt2"].build()
    assert modules(root, glob) == [name for name, _ in root.named_modules() if fnmatchcase(name, glob)]
    if glob != "lm_head":
        assert buffers(root, glob) == [name for name, _ in root.named_buffers() if fnmatchcase(name, glob)]
        assert parameters(root, glob) == [
            name
            for name, p in root.named_parameters()
            if any(
                q is p and fnmatchcase(other, glob)
                for other, q in root.named_parameters(remove_duplicate=False)
            )
        ]


def test_nothing_said_selects_all_and_the_empty_path_the_root() -> None:
    root = ZOO["buffers"].build()
    assert modules(root) == [name for name, _ in root.named_modules()]
    assert modules(root, "") == [""]
    assert parameters(root, "") == [name for name, _ in root.named_parameters()]
    assert parameters(root) == [name for name, _ in root.named_parameters()]
    assert buffers(root) == [name for name, _ in root.named_buffers()]


def test_what_matches_nothing_selects_nothing() -> None:
    root = MLP()
    for glob in ("nope", "nope.*", "w", "w1.weight.*"):
        assert modules(root, glob) == []
    for glob in ("nope", "nope.*", "weight", "w1.weight.*"):
        assert parameters(root, glob) == buffers(root, glob) == []
    assert modules(root, "*", "Conv2d") == parameters(root, "*", "Conv2d") == []


def test_types_are_isinstance() -> None:
    root = nn.Sequential(MLP(), nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)), nn.BatchNorm1d(2))
    linear = [name for name, module in root.named_modules() if isinstance(module, nn.Linear)]
    for type_name in ("Linear", "torch.nn.Linear", "torch.nn.modules.linear.Linear"):
        assert modules(root, "*", type_name) == linear == ["0.w1", "0.w2", "0.w3", "1"]
    assert modules(root, "0.*", "Linear") == ["0.w1", "0.w2", "0.w3"]
    assert modules(root, "0", "Linear") == []
    assert parameters(root, "*weight", "Linear") == ["0.w1.weight", "0.w2.weight", "0.w3.weight"]
    assert parameters(root, "", "_NormBase") == ["2.weight", "2.bias"]
    assert buffers(root, "*mean", "BatchNorm1d") == ["2.running_mean"]


def test_a_module_path_selects_all_below_it() -> None:
    root = ZOO["gpt2"].build()
    below = [
        f"transformer.h.1.{name}" for name, _ in root.get_submodule("transformer.h.1").named_parameters()
    ]
    assert parameters(root, "transformer.h.1") == below
    assert parameters(root, "transformer.h.1", "LayerNorm") == [p for p in below if ".ln_" in p]
    tied = ZOO["tied"].build()
    assert parameters(tied, "decode") == ["embed.weight", "decode.bias"]
    assert parameters(tied, "mirror") == ["embed.weight"]
    assert buffers(ZOO["buffers"].build(), "norm") == [
        "norm.running_mean",
        "norm.running_var",
        "norm.num_batches_tracked",
    ]


def test_a_tied_or_shared_one_is_selected_by_any_of_its_paths() -> None:
    tied = ZOO["tied"].build()
    for glob in ("decode.weight", "decode.w*", "mirror.*", "embed.*", "embed.weight"):
        assert parameters(tied, glob) == ["embed.weight"]
    shared = ZOO["shared"].build()
    for glob in ("again", "agai?", "inside.block", "first"):
        assert modules(shared, glob) == ["first"]
    assert modules(shared, "again.*") == ["first.0", "first.1"]
    assert parameters(shared, "inside.block.0.bias") == ["first.0.bias"]
    assert parameters(shared, "inside.*") == [
        "first.0.weight",
        "first.0.bias",
        "inside.own.weight",
        "inside.own.bias",
    ]


def test_an_existing_path_wins_over_its_reading_as_a_glob() -> None:
    root = nn.Module()
    for name in ("a", "*", "[ab]", "b", "{a,b}"):
        root.add_module(name, nn.Linear(1, 1))
    for name in ("*", "[ab]", "{a,b}"):
        assert modules(root, name) == [name]
        assert parameters(root, name) == [f"{name}.weight", f"{name}.bias"]
        assert parameters(root, f"{name}.bias") == [f"{name}.bias"]
    assert modules(root, "[ab]*") == ["a", "b"]
    assert modules(root, r"\[ab\]") == ["[ab]"]
    for path, _ in list(root.named_modules())[1:]:
        assert modules(root, literal(path)) == [path]


def test_braces() -> None:
    assert parameters(MLP(), "w{1,3}.bias") == ["w1.bias", "w3.bias"]
    assert modules(ZOO["containers"].build(), "by_name.*") == [
        "by_name.keys*",
        "by_name.größe",
        "by_name.line\nbreak",
    ]


@pytest.mark.parametrize("glob", ["[", "{a", "a\\", "w[z-a]"])
def test_a_bad_glob_is_refused(glob: str) -> None:
    for select in (select_modules, select_located_parameters, select_located_buffers):
        with pytest.raises(BadGlobError) as caught:
            select(MLP(), glob)
        assert (caught.value.reason, caught.value.field) == ("BAD_GLOB", "glob")
        assert glob in caught.value.message.replace("\\\\", "\\")
        assert caught.value.hint


@pytest.mark.parametrize("name", WRAPPED)
def test_wrapped_models_are_selected_by_both_names(name: str) -> None:
    root = WRAPPED[name].build()
    plain = nn.Sequential(MLP(), nn.BatchNorm1d(1))
    assert modules(root, "0*") == [path for path, _ in plain.named_modules() if path.startswith("0")]
    assert parameters(root, "0.w1") == ["0.w1.weight", "0.w1.bias"]
    for one in select_located_parameters(root):
        assert parameters(root, one.path) == parameters(root, one.raw_path) == [one.path]
        assert parameters(root, one.raw_path.replace("weight", "weigh?")) == [one.path]


def test_a_raw_glob_never_widens_one_that_matches() -> None:
    inner = nn.Module()
    inner.module = nn.Linear(1, 1)
    inner.other = nn.Linear(1, 1)
    root = nn.DataParallel(inner)
    assert parameters(root, "module.*") == ["module.weight", "module.bias"]
    assert parameters(root, "module.o*") == ["other.weight", "other.bias"]
    assert modules(root, "module") == ["module"]


def test_under_and_depth() -> None:
    root = ZOO["nested"].build()
    assert [r.path for r in select_module_records(root, depth=0)] == [""]
    assert [r.path for r in select_module_records(root, depth=2)] == ["", "inner", "inner.inner"]
    assert [r.path for r in select_module_records(root, under="inner.inner", depth=1)] == [
        "inner.inner",
        "inner.inner.inner",
    ]
    linear = select_module_records(root, type="Linear", under="inner")
    assert [r.path for r in linear] == [".".join(["inner"] * 51)]
    shared = ZOO["shared"].build()
    below = select_module_records(shared, under="inside")
    assert [r.path for r in below] == [n for n, _ in shared.inside.named_modules(prefix="inside")]
    assert {r.path: r.aliases for r in below}["inside.block.0"] == ("first.0", "again.0")
    wrapped = WRAPPED["wrapped_twice"].build()
    assert [(r.path, r.raw_path) for r in select_module_records(wrapped, under="0", depth=0)] == [
        ("0", "module.0._checkpoint_wrapped_module")
    ]
