"""A pool of daemon threads for gRPC handlers: a handler that blocks never keeps the process alive."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

__all__ = ["DaemonPool"]

P = ParamSpec("P")
T = TypeVar("T")


class DaemonPool(Executor):
    """Runs what is submitted on at most `size` daemon threads, started as they are needed.

    concurrent.futures' own pool joins its threads at interpreter exit, before any atexit function
    could wake them.
    """

    def __init__(self, size: int, name: str) -> None:
        self._size = size
        self._name = name
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._threads = 0
        self._lock = threading.Lock()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run `fn` on one of the threads, as soon as one is free."""
        future: Future[T] = Future()
        self._work.put(lambda: _run(future, fn, args, kwargs))
        if not self._idle.acquire(blocking=False):
            self._grow()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Let the threads end when they have done what was submitted. Waits for none of them."""
        with self._lock:
            for _ in range(self._threads):
                self._work.put(None)

    def _grow(self) -> None:
        with self._lock:
            if self._threads >= self._size:
                return
            self._threads += 1
            number = self._threads
        threading.Thread(target=self._serve, name=f"{self._name}-{number}", daemon=True).start()

    def _serve(self) -> None:
        while True:
            work = self._work.get()
            if work is None:
                return
            work()
            del work
            self._idle.release()


def _run(future: Future[Any], fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    try:
        future.set_result(fn(*args, **kwargs))
    except BaseException as error:
        future.set_exception(error)
