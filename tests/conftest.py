"""What every test stands on: a private runtime directory, one thread for torch, no settings from outside."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator

import hypothesis
import pytest

# Tests import grpc before any attach does, so the setting that attach makes would come too late.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
for _name in ("MODSCOPE_ADDRESS", "MODSCOPE_TOKEN", "MODSCOPE_DISABLE", "NO_COLOR", "FORCE_COLOR"):
    os.environ.pop(_name, None)

hypothesis.settings.register_profile(
    "modscope",
    deadline=None,  # the first example of a run pays for imports, and a busy machine for others
    max_examples=60,
    derandomize=bool(os.environ.get("CI")),
)
hypothesis.settings.load_profile("modscope")


@pytest.fixture(scope="session", autouse=True)
def _runtime_directory() -> Iterator[None]:
    """A runtime directory of this session, with a path short enough for a socket below it."""
    path = tempfile.mkdtemp(prefix="ms-")
    os.environ["MODSCOPE_RUNTIME_DIR"] = path
    yield
    del os.environ["MODSCOPE_RUNTIME_DIR"]
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """One thread for torch: small models gain nothing from more, and runs become comparable."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _nothing_compiled() -> Iterator[None]:
    """What one test has compiled makes no watch of another run its steps eagerly, and say so."""
    yield
    utils = sys.modules.get("torch._dynamo.utils")
    if utils is not None and utils.counters:
        sys.modules["torch._dynamo"].reset()
        utils.counters.clear()
