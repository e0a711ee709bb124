"""Several changes as one: collected here, sent when the `with` ends, carried out at one step boundary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any

from modscope.tensor import TensorData
from modscope.v1 import operation_service_pb2, optimizer_service_pb2
from modscope.wire import Frame
from modscope_client import convert, ledger, optimizers, requests
from modscope_client.calls import Calls
from modscope_client.channel import BULK_BYTES
from modscope_client.convert import request
from modscope_client.errors import InvalidArgument
from modscope_client.transfer import tensor_frames
from modscope_client.types import Operation

__all__ = ["Changes", "Transaction"]

Requests = Iterator[Frame[operation_service_pb2.TransactRequest]]


class Changes:
    """Changes that are collected, with the names of RemoteModel's; nothing is sent yet.

    `expected` holds when the transaction takes effect: before the first of its changes.
    """

    def __init__(
        self, model: str, expected: Mapping[str, str] | None, dry_run: bool, request_id: str | None
    ) -> None:
        self._model = model
        self._expected: dict[str, str] = {}
        self._expect(expected)
        self._dry_run = dry_run
        self._request_id = request_id
        self._parts: list[tuple[operation_service_pb2.Change, TensorData | None]] = []
        self._entered = False
        self._left = False
        self._operation: Operation | None = None

    @property
    def operation(self) -> Operation:
        """What was done. Raises RuntimeError before the `with` has ended, and where it had no change."""
        if self._operation is None:
            raise RuntimeError("the transaction has not been carried out: it is when its `with` ends")
        return self._operation

    def write(
        self,
        path: str,
        array: Any = None,
        *,
        cast: bool = False,
        fill: float | int | bool | None = None,
        allow_non_finite: bool = False,
        expected: str | None = None,
    ) -> None:
        """Write a parameter or buffer, as RemoteModel.write does; the array is copied now."""
        first, tensor = requests.write(
            "", path, array, cast=cast, fill=fill, allow_non_finite=allow_non_finite
        )
        if tensor is not None and not isinstance(tensor.data, bytes):
            tensor = TensorData(tensor.dtype, tensor.shape, bytes(tensor.data))
        self._add({} if expected is None else {path: expected}, tensor, write=first)

    def freeze(
        self,
        glob: str = "*",
        type: str | type | None = None,
        force: bool = False,
        *,
        norm_stats: bool = False,
        expected: Mapping[str, str] | None = None,
    ) -> None:
        """Set requires_grad to False, as RemoteModel.freeze does."""
        asked = requests.freeze("", glob, type, force=force, norm_stats=norm_stats)
        self._add(expected, freeze=asked)

    def unfreeze(
        self,
        glob: str = "*",
        type: str | type | None = None,
        *,
        expected: Mapping[str, str] | None = None,
    ) -> None:
        """Set requires_grad to True, as RemoteModel.unfreeze does."""
        self._add(expected, unfreeze=requests.unfreeze("", glob, type))

    def reinitialize(
        self,
        glob: str = "*",
        *,
        type: str | type | None = None,
        parameter: str | None = None,
        scheme: str = "reset_parameters",
        seed: int | None = None,
        reset_optimizer: bool = True,
        expected: Mapping[str, str] | None = None,
        **scheme_arguments: Any,
    ) -> None:
        """Initialise parameters anew, as RemoteModel.reinitialize does."""
        asked = requests.reinitialize(
            "",
            glob,
            type,
            parameter,
            scheme,
            seed,
            reset_optimizer=reset_optimizer,
            arguments=scheme_arguments,
        )
        self._add(expected, reinitialize=asked)

    def set_optimizer(
        self,
        group: int | None = None,
        *,
        base_lr: bool = False,
        expected: Mapping[str, str] | None = None,
        **hyperparameters: Any,
    ) -> None:
        """Set hyper-parameters, as RemoteModel.set_optimizer does."""
        asked = optimizers.set_optimizer("", group, hyperparameters, base_lr=base_lr)
        self._add(expected, set_optimizer=asked)

    def add_to_optimizer(
        self, glob: str, group: int | None = None, *, expected: Mapping[str, str] | None = None
    ) -> None:
        """Give parameters that no optimizer holds to one, as RemoteModel.add_to_optimizer does."""
        asked = request(optimizer_service_pb2.AddToOptimizerRequest, glob=glob, group=group)
        self._add(expected, add_to_optimizer=asked)

    def _enter(self) -> None:
        if self._entered:
            raise RuntimeError("a transaction is entered once: call transaction() anew")
        self._entered = True

    def _leave(self, error: BaseException | None) -> bool:
        """The `with` has ended; whether there is something to send."""
        self._left = True
        return error is None and bool(self._parts)

    def _add(
        self, expected: Mapping[str, str] | None, tensor: TensorData | None = None, **change: Any
    ) -> None:
        if not self._entered or self._left:
            raise RuntimeError("a transaction takes changes inside its `with` alone")
        made = operation_service_pb2.Change(**change)
        self._expect(expected)
        self._parts.append((made, tensor))

    def _expect(self, expected: Mapping[str, str] | None) -> None:
        options = requests.options(expected, False, None)
        for path, digest in ({} if options is None else options.expected).items():
            if self._expected.setdefault(path, digest) != digest:
                raise InvalidArgument(
                    f"{path!r} cannot have two digests at once: {self._expected[path]} and {digest}",
                    hint="what is expected holds before the first change of a transaction",
                    details={"field": "expected"},
                )

    @property
    def _is_bulk(self) -> bool:
        return sum(len(tensor.data) for _, tensor in self._parts if tensor is not None) > BULK_BYTES

    def _frames(self) -> Requests:
        """The requests of one Transact: the model, then each change and its bytes, then that this is all."""
        kind = operation_service_pb2.TransactRequest
        options = requests.options(self._expected or None, self._dry_run, self._request_id)
        yield Frame(request(kind, model=self._model, options=options))
        for change, tensor in self._parts:
            yield from tensor_frames(kind(change=change), tensor)
        yield Frame(kind(commit=True))


class Transaction(Changes):
    """Changes that take effect at one step boundary, all or none, when the `with` ends well."""

    def __init__(
        self,
        calls: Calls,
        model: str,
        expected: Mapping[str, str] | None,
        dry_run: bool,
        request_id: str | None,
    ) -> None:
        super().__init__(model, expected, dry_run, request_id)
        self._calls = calls

    def __enter__(self) -> Transaction:
        self._enter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Send all of it, unless the block raised. Where the server refuses one change, none is done."""
        if self._leave(error):
            answer = self._calls.upload(ledger.TRANSACT, self._frames(), bulk=self._is_bulk)
            self._operation = convert.operation(answer.operation)
