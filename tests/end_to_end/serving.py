"""What the end-to-end tests share: a served model and its client, the CLI as a process, exact comparison."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import modscope_server
from modscope_client import Client, connect
from modscope_client.handles import RemoteModel

__all__ = ["Served", "bits", "cli", "fingerprint", "raw", "running_loop", "served", "until"]

TIMEOUT = 30.0
"""Seconds that a call of a test may take: far more than any needs."""


@dataclass(frozen=True)
class Served:
    """A model, its server and a client with the operator token."""

    module: nn.Module
    scope: modscope_server.Scope
    client: Client
    model: RemoteModel


@contextmanager
def served(module: nn.Module, optimizer: Any = None, **options: Any) -> Iterator[Served]:
    """Attaches to the module and connects to it over a Unix socket; writable unless told otherwise."""
    options = {"writable": True, **options}
    with (
        modscope_server.attach(module, optimizer=optimizer, **options) as scope,
        connect(scope.address, token=scope.token, timeout=TIMEOUT) as client,
    ):
        yield Served(module, scope, client, client.model())


def raw(tensor: torch.Tensor) -> bytes:
    """The bytes of a tensor's elements, row-major."""
    flat = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return bytes(flat.view(torch.uint8).numpy()) if flat.numel() else b""


def bits(array: Any) -> tuple[str, tuple[int, ...], bytes]:
    """dtype name, shape and bytes of an array from the client, to be compared with those of a tensor."""
    if isinstance(array, torch.Tensor):
        return str(array.dtype).removeprefix("torch."), tuple(array.shape), raw(array)
    if hasattr(array, "tobytes"):
        return str(array.dtype), tuple(array.shape), array.tobytes()
    return array.dtype, tuple(array.shape), bytes(array.data)


def fingerprint(module: nn.Module) -> str:
    """A hash over all that a call could change: tensors bit for bit, their identity, gradients, flags."""
    hasher = hashlib.sha256()
    for path, part in module.named_modules():
        hasher.update(f"{path} {type(part).__qualname__} {part.training} {part.extra_repr()}".encode())
    for kind in (module.named_parameters(), module.named_buffers()):
        for path, tensor in kind:
            hasher.update(
                f"{path} {id(tensor)} {tensor.dtype} {tensor.shape} {tensor.requires_grad}".encode()
            )
            hasher.update(raw(tensor))
            hasher.update(b"none" if tensor.grad is None else raw(tensor.grad))
    return hasher.hexdigest()


@dataclass(frozen=True)
class Outcome:
    """What a run of the CLI left."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What it printed, parsed."""
        return json.loads(self.out)

    @property
    def error(self) -> dict[str, Any]:
        """The error that it told under `-o json`: the last line of stderr."""
        parsed: dict[str, Any] = json.loads(self.err)
        return parsed


def cli(
    *arguments: str, scope: modscope_server.Scope | None = None, env: Mapping[str, str] | None = None
) -> Outcome:
    """Runs `modscope ARGUMENTS` as a process, with the address and operator token of `scope`."""
    environment = {**os.environ, "NO_COLOR": "1", "COLUMNS": "200"}
    if scope is not None:
        environment |= {"MODSCOPE_ADDRESS": str(scope.address), "MODSCOPE_TOKEN": str(scope.token)}
    done = subprocess.run(
        [sys.executable, "-m", "modscope_client", *arguments],
        env={**environment, **(env or {})},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def until(condition: Callable[[], Any], what: str, seconds: float = TIMEOUT) -> None:
    """Returns when the condition holds; asks again and again, without a sleep of its own choosing."""
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds:.0f} s in vain: {what}")
        pause.wait(0.01)


@contextmanager
def running_loop(iteration: Callable[[], Any]) -> Iterator[threading.Thread]:
    """Calls `iteration` again and again on a thread of its own; raises what it raised."""
    stop = threading.Event()
    failures: list[BaseException] = []

    def loop() -> None:
        try:
            while not stop.is_set():
                iteration()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=loop, name="training loop")
    thread.start()
    try:
        yield thread
    finally:
        stop.set()
        thread.join(TIMEOUT)
    assert not thread.is_alive(), "the training loop hangs"
    if failures:
        raise failures[0]
