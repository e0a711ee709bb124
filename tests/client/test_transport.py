"""A training process may import the client before it attaches."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

CLIENT_FIRST = """
import torch
import {first}
from modscope_client import connect
import modscope_server

model = torch.nn.Linear(2, 3)
with modscope_server.attach(model) as scope, connect(scope.address, token=scope.token) as client:
    assert [info.parameters for info in client.models()] == [9]
"""
GRPC_FIRST = """
import os
import grpc
import modscope_client.client
print(os.environ.get("GRPC_ENABLE_FORK_SUPPORT"))
"""


def ran(script: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "GRPC_ENABLE_FORK_SUPPORT"}
    command = [sys.executable, "-W", "error", "-c", script]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)


@pytest.mark.parametrize("first", ["modscope_client", "modscope_client.aio"])
def test_attach_after_the_client_warns_of_nothing(first: str) -> None:
    done = ran(CLIENT_FIRST.format(first=first))
    assert done.returncode == 0, done.stderr


def test_a_grpc_that_was_there_first_is_left_alone() -> None:
    done = ran(GRPC_FIRST)
    assert (done.returncode, done.stdout.strip()) == (0, "None"), done.stderr
