"""Tensors that come in over a stream: staged in host memory within the limits, byte counts checked."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

import numpy

from modscope.tensor import TensorData
from modscope_server.errors import BadRequest
from modscope_server.runtime.staging import Budget

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Uploads"]


class Uploads:
    """Receives tensors one after the other. Use it in a `with`: leaving it gives the staging memory back.

    `begin` announces a tensor, `feed` brings its bytes, `finish` gives all of them. Raises
    BadRequest where the bytes are more or fewer than announced, LimitExceeded where the staging
    memory does not suffice.
    """

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._reserved = 0
        self._received: list[TensorData] = []
        self._name = ""
        self._place = memoryview(b"")
        self._filled = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._budget.give(self._reserved)
        self._reserved = 0

    def reserve(self, size: int) -> None:
        """Take so many bytes more. Raises LimitExceeded where they are not to be had."""
        self._budget.take(size)
        self._reserved += size

    def begin(self, name: str, dtype: str, shape: tuple[int, ...], size: int) -> None:
        """The next bytes are those of this tensor, `size` in all."""
        self._check_complete()
        if size < 0:
            raise BadRequest(f"{name} cannot have {size} bytes", hint="set byte_size", field="byte_size")
        self.reserve(size)
        self._name = name
        self._place = numpy.empty(size, numpy.uint8).data
        self._filled = 0
        try:
            self._received.append(TensorData(dtype, shape, self._place))
        except ValueError as error:
            raise BadRequest(
                f"{name}: {error}", hint="give a shape of exactly byte_size bytes", field="shape"
            ) from error

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """The next bytes of the tensor that was announced last."""
        if not len(data):
            return
        end = self._filled + len(data)
        if end > len(self._place):
            what = f"{self._name} has {len(self._place)} bytes" if self._name else "no tensor was announced"
            raise BadRequest(
                f"{what}, and {end} came",
                hint="announce each tensor, then send exactly its bytes",
                field="data",
            )
        self._place[self._filled : end] = data
        self._filled = end

    def finish(self) -> list[TensorData]:
        """All tensors, in the order in which they were announced."""
        self._check_complete()
        return list(self._received)

    @property
    def count(self) -> int:
        """Tensors announced so far."""
        return len(self._received)

    def _check_complete(self) -> None:
        if self._filled < len(self._place):
            raise BadRequest(
                f"{self._name} has {len(self._place)} bytes, and only {self._filled} came",
                hint="send all bytes of a tensor before the next one, and before the stream ends",
                field="data",
            )
