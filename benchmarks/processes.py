"""Processes that take part in a measurement, and their memory.

A child says one line of JSON when it is ready, then answers each line on its standard input, a word
and its arguments, with another, and ends when its standard input does.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

__all__ = ["Child", "answer", "environment", "forget_peak", "peak_memory", "resident_memory", "workplace"]

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


class Child:
    """`python -m MODULE ARGUMENTS`, from `with` to its end."""

    def __init__(self, module: str, *arguments: str, env: Mapping[str, str] | None = None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **(env or {})},
        )

    @functools.cached_property
    def hello(self) -> Any:
        """What it said when it was ready. Waited for when it is first asked for: children start together."""
        return self._read()

    def ask(self, word: str, *arguments: Any) -> Any:
        """Its answer to a word and its arguments, which JSON can carry."""
        self.hello  # noqa: B018 - it comes before any answer
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([word, *arguments]) + "\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """End it and wait until it has ended."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{' '.join(map(str, self._process.args[1:]))} ended early")  # type: ignore[index]
        return json.loads(line)

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def answer(hello: Mapping[str, Any], answers: Mapping[str, Callable[..., Any]]) -> None:
    """The child's side: say hello, then answer until standard input ends."""
    print(json.dumps(dict(hello)), flush=True)
    for line in sys.stdin:
        word, *arguments = json.loads(line)
        print(json.dumps(answers[word](*arguments)), flush=True)


def resident_memory() -> int:
    """Bytes of this process that are in memory now; its peak where the system tells no more."""
    return _status("VmRSS") or _usage()


def peak_memory() -> int:
    """Most bytes of this process that were in memory at once; since `forget_peak` where the system can."""
    return _status("VmHWM") or _usage()


def forget_peak() -> int:
    """Let the peak begin anew. Gives the bytes that are in memory now."""
    with contextlib.suppress(OSError):
        _CLEAR.write_text("5")
    return resident_memory()


@contextlib.contextmanager
def workplace() -> Iterator[Path]:
    """A directory for sockets and files of one measurement; servers and clients find each other there."""
    with tempfile.TemporaryDirectory(prefix="msb-") as directory:
        dropped = dict.fromkeys(("MODSCOPE_ADDRESS", "MODSCOPE_TOKEN", "MODSCOPE_DISABLE"))
        chosen = {"MODSCOPE_RUNTIME_DIR": str(Path(directory) / "run"), "GRPC_ENABLE_FORK_SUPPORT": "0"}
        with environment({**dropped, **chosen}):
            yield Path(directory)


@contextlib.contextmanager
def environment(values: Mapping[str, str | None]) -> Iterator[None]:
    """Environment variables, for a while; None takes one away."""
    before = {name: os.environ.get(name) for name in values}
    _set(values)
    try:
        yield
    finally:
        _set(before)


def _set(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _status(field: str) -> int:
    with contextlib.suppress(OSError):
        for line in _STATUS.read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) << 10
    return 0


def _usage() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
