"""The lines of a module tree."""

from __future__ import annotations

import pytest
from torch import nn

from modscope_client.cli.tree import tree_rows
from modscope_client.types import ModuleInfo


def infos(root: nn.Module, below: str = "") -> list[ModuleInfo]:
    """Records of the modules as the server would give them, those below a path."""
    return [
        ModuleInfo(
            path, path.rpartition(".")[2], type(module).__name__, "", True, len(list(module.children())), 0, 0
        )
        for path, module in root.named_modules()
        if not below or path == below or path.startswith(f"{below}.")
    ]


def drawn(modules: list[ModuleInfo], depth: int | None = None) -> list[str]:
    return [f"{row.lead}{row.module.name or '(root)'}" for row in tree_rows(modules, depth)]


@pytest.fixture
def model() -> nn.Module:
    block = nn.Sequential(nn.Linear(1, 1), nn.Sequential(nn.ReLU(), nn.Tanh()))
    return nn.ModuleDict({"stem": block, "head": nn.Linear(1, 1)})


def test_the_whole_tree(model: nn.Module) -> None:
    assert drawn(infos(model)) == [
        "(root)",
        "├── stem",
        "│   ├── 0",
        "│   └── 1",
        "│       ├── 0",
        "│       └── 1",
        "└── head",
    ]


def test_a_subtree_has_its_own_top(model: nn.Module) -> None:
    assert drawn(infos(model, "stem.1")) == ["1", "├── 0", "└── 1"]


def test_depth_folds_what_is_below(model: nn.Module) -> None:
    rows = tree_rows(infos(model), 1)
    assert [row.lead + row.module.name for row in rows] == ["", "├── stem", "└── head"]
    assert [row.folded for row in rows] == [False, True, False]
    assert drawn(infos(model), 0) == ["(root)"]


def test_names_with_dots_hang_below_the_nearest_module() -> None:
    odd = nn.Module()
    setattr(odd, "a.b", nn.Linear(1, 1))
    assert drawn(infos(odd)) == ["(root)", "└── b"]


def test_a_tree_deeper_than_the_recursion_limit() -> None:
    modules = [
        ModuleInfo(".".join(["m"] * level), "m" if level else "", "M", "", True, 1, 0, 0)
        for level in range(1500)
    ]
    rows = tree_rows(modules)
    assert len(rows) == 1500
    assert rows[-1].lead == "    " * 1498 + "└── "
