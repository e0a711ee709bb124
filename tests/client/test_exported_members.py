"""The public surface is an explicit list, and importing it costs nothing."""

from __future__ import annotations

import importlib
import json
import pkgutil
import subprocess
import sys
from typing import Any

import pytest

import modscope_client


def test_every_exported_name_exists() -> None:
    for name in modscope_client.__all__:
        assert getattr(modscope_client, name) is not None
    assert list(modscope_client.__all__) == sorted(set(modscope_client.__all__))
    assert set(modscope_client.__all__) <= set(dir(modscope_client))


@pytest.mark.parametrize("home", ["errors", "types"])
def test_every_error_and_record_is_exported(home: str) -> None:
    module = importlib.import_module(f"modscope_client.{home}")
    classes = {name for name in module.__all__ if isinstance(getattr(module, name), type)}
    assert classes <= set(modscope_client.__all__)
    for name in classes:
        assert getattr(modscope_client, name) is getattr(module, name)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'conect'"):
        modscope_client.conect  # noqa: B018


def test_every_module_has_a_list_of_names_and_a_duty_line() -> None:
    for found in pkgutil.walk_packages(modscope_client.__path__, "modscope_client."):
        if found.name.startswith("modscope_client.cli") or found.name.endswith("__main__"):
            continue
        module = importlib.import_module(found.name)
        assert module.__doc__, found.name
        assert module.__all__, found.name
        assert all(hasattr(module, name) for name in module.__all__), found.name


def imported_by(statement: str) -> set[str]:
    """The top-level modules that a fresh interpreter has after a statement."""
    code = f"import json, sys\n{statement}\nprint(json.dumps(list(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    names: list[Any] = json.loads(done.stdout)
    return {name.partition(".")[0] for name in names}


def test_importing_the_package_imports_no_library() -> None:
    heavy = {"grpc", "numpy", "google", "ml_dtypes", "torch", "click", "rich", "yaml"}
    assert not imported_by("import modscope_client") & heavy
    assert not imported_by("from modscope_client import servers, NotFound, ModelInfo; servers()") & heavy


def test_connecting_imports_neither_torch_nor_numpy() -> None:
    found = imported_by("from modscope_client import connect; connect('unix:/nowhere').close()")
    assert "grpc" in found
    assert not found & {"torch", "numpy", "ml_dtypes", "click", "rich", "yaml", "safetensors"}
