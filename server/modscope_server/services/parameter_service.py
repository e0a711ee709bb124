"""ParameterService: listing, reading, writing, freezing and reinitialising parameters and buffers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from modscope import wire
from modscope.tensor import CHUNK_BYTES, TensorData, digest
from modscope.v1 import parameter_service_pb2 as messages
from modscope.v1 import tensor_pb2
from modscope.wire import Frame
from modscope_server.inspection.parameters import find_tensor, records_of, tensor_of, tensor_record
from modscope_server.inspection.records import LocatedTensor, TensorRecord
from modscope_server.inspection.selection import select_located_buffers, select_located_parameters
from modscope_server.inspection.statistics import Reduction, reduce, statistics
from modscope_server.inspection.tensors import (
    dtype_name,
    from_data,
    nbytes,
    shape_of,
    to_data,
    unreadable_reason,
)
from modscope_server.runtime.registry import Registered
from modscope_server.runtime.safepoint import Kind
from modscope_server.services import convert
from modscope_server.services.auth import changes
from modscope_server.services.call import Call
from modscope_server.services.change_plans import Write, freeze_plan, reinitialize_plan, unfreeze_plan
from modscope_server.services.filling import added
from modscope_server.services.serving import Serving, batches
from modscope_server.services.uploads import Uploads

if TYPE_CHECKING:
    import torch

__all__ = ["ParameterServicer"]


class ParameterServicer:
    """Translates ParameterService's calls."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    def list_parameters(
        self, request: messages.ListParametersRequest, call: Call
    ) -> Iterator[messages.ListParametersResponse]:
        """The parameters that match, in batches."""
        registered = self._serving.registry.get(request.model)
        wanted = request.requires_grad if request.HasField("requires_grad") else None

        def select() -> list[LocatedTensor]:
            located = select_located_parameters(registered.root, request.glob, request.type)
            return [one for one in located if wanted is None or one.tensor.requires_grad == wanted]

        records, step = self._records(call, registered, select, stats=request.stats)
        for batch in batches(records):
            response = messages.ListParametersResponse(step=step)
            for record in batch:
                convert.parameter_info(record, added(response.parameters, convert.PARAMETER))
            yield response

    def list_buffers(
        self, request: messages.ListBuffersRequest, call: Call
    ) -> Iterator[messages.ListBuffersResponse]:
        """The buffers that match, in batches."""
        registered = self._serving.registry.get(request.model)

        def select() -> list[LocatedTensor]:
            return select_located_buffers(registered.root, request.glob, request.type)

        records, step = self._records(call, registered, select, stats=request.stats)
        for batch in batches(records):
            response = messages.ListBuffersResponse(step=step)
            for record in batch:
                convert.buffer_info(record, added(response.buffers, convert.BUFFER))
            yield response

    def get_tensor(self, request: messages.GetTensorRequest, call: Call) -> messages.GetTensorResponse:
        """One parameter or buffer whole; statistics and digest come from a copy, after the safe point."""
        registered = self._serving.registry.get(request.model)
        records: list[TensorRecord] = []

        def collect() -> list[tuple[str, torch.Tensor]]:
            record = tensor_record(registered.root, request.path, registered.groups())
            records[:] = [record]
            found = find_tensor(registered.root, request.path)
            return [] if record.unreadable else [(record.path, found.tensor)]

        with self._serving.staged(call, collect, ahead=False) as staged:
            response = messages.GetTensorResponse(step=staged.step)
            (record,) = records
            if staged.entries:
                data = staged.data(0)
                response.digest = digest(data)
                if request.stats:
                    record = replace(record, stats=statistics(from_data(data)))
        if record.persistent is None:
            response.parameter.CopyFrom(convert.PARAMETER)
            convert.parameter_info(record, response.parameter)
        else:
            response.buffer.CopyFrom(convert.BUFFER)
            convert.buffer_info(record, response.buffer)
        return response

    def read_tensor(
        self, request: messages.ReadTensorRequest, call: Call
    ) -> Frame[messages.ReadTensorResponse]:
        """The elements of one small tensor."""
        registered = self._serving.registry.get(request.model)

        def copy() -> tuple[tensor_pb2.TensorSpec, TensorData | None]:
            tensor = _tensor(registered, request.path, request.what)
            if nbytes(tensor) > CHUNK_BYTES and not unreadable_reason(tensor):
                return wire.spec_of(dtype_name(tensor), shape_of(tensor), nbytes(tensor)), None
            data = to_data(tensor)
            return wire.spec_of(data.dtype, data.shape, len(data.data)), data

        answer = self._serving.run(call, copy, _kind(request.what))
        spec, data = answer.value
        header = messages.ReadTensorResponse(step=answer.step, spec=spec, too_large=data is None)
        return Frame(header, b"" if data is None else data.data)

    def read_tensors(
        self, request: messages.ReadTensorsRequest, call: Call
    ) -> Iterator[Frame[messages.ReadTensorsResponse]]:
        """The elements of tensors, all of one step."""
        registered = self._serving.registry.get(request.model)

        def collect() -> list[tuple[str, torch.Tensor]]:
            return [(path, _tensor(registered, path, request.what)) for path in request.paths]

        kind = _kind(request.what)
        with self._serving.staged(call, collect, kind, ahead=kind != "grad") as staged:
            yield Frame(messages.ReadTensorsResponse(step=staged.step))
            for chunk in staged.chunks():
                message = messages.ReadTensorsResponse()
                if chunk.begins:
                    entry = staged.entries[chunk.entry]
                    convert.tensor_header(entry.key, entry.dtype, entry.shape, entry.size, message.tensor)
                yield Frame(message, chunk.data)

    @changes
    def write_tensor(
        self, requests: Iterator[Frame[messages.WriteTensorRequest]], call: Call
    ) -> messages.WriteTensorResponse:
        """Take in a tensor, check it, then copy it into its target at a safe point."""
        with Uploads(self._serving.budget) as uploads:
            opening = next(requests, Frame(messages.WriteTensorRequest()))
            first, data = opening.header, opening.data
            registered = self._serving.registry.get(first.model)
            write = Write(self._serving, registered, first, uploads)
            uploads.feed(data)
            for frame in requests:
                uploads.feed(frame.data)
            plan = write.plan(uploads.finish())
            operation = self._serving.change(call, registered, "write", plan, first.options)
        return messages.WriteTensorResponse(operation=operation)

    @changes
    def freeze(self, request: messages.FreezeRequest, call: Call) -> messages.FreezeResponse:
        """Set requires_grad to False."""
        registered = self._serving.registry.get(request.model)
        plan = freeze_plan(self._serving, registered, request)
        operation = self._serving.change(call, registered, "freeze", plan, request.options)
        return messages.FreezeResponse(operation=operation)

    @changes
    def unfreeze(self, request: messages.UnfreezeRequest, call: Call) -> messages.UnfreezeResponse:
        """Set requires_grad to True."""
        registered = self._serving.registry.get(request.model)
        plan = unfreeze_plan(self._serving, registered, request)
        operation = self._serving.change(call, registered, "unfreeze", plan, request.options)
        return messages.UnfreezeResponse(operation=operation)

    @changes
    def reinitialize(
        self, request: messages.ReinitializeRequest, call: Call
    ) -> messages.ReinitializeResponse:
        """Initialise parameters anew; `dry_run` is the same as that of the options."""
        registered = self._serving.registry.get(request.model)
        plan = reinitialize_plan(self._serving, registered, request)
        request.options.dry_run |= request.dry_run
        operation = self._serving.change(call, registered, "reinitialize", plan, request.options)
        return messages.ReinitializeResponse(operation=operation)

    def _records(
        self, call: Call, registered: Registered, select: Callable[[], list[LocatedTensor]], *, stats: bool
    ) -> tuple[Sequence[TensorRecord], int]:
        """Records of what is selected, and the step at which they hold."""

        def measure() -> list[tuple[TensorRecord, Reduction | None]]:
            located = select()
            records = records_of(located, registered.groups())
            return [
                (record, reduce(one.tensor) if stats and not record.unreadable else None)
                for one, record in zip(located, records, strict=True)
            ]

        answer = self._serving.run(call, measure)
        measured = [
            record if reduction is None else replace(record, stats=reduction.resolve())
            for record, reduction in answer.value
        ]
        return measured, answer.step


def _tensor(registered: Registered, path: str, what: str) -> torch.Tensor:
    located = find_tensor(registered.root, path)
    if what in ("", "value", "grad"):
        return tensor_of(located, what)
    return tensor_of(located, what, registered.groups())


def _kind(what: str) -> Kind:
    return "grad" if what == "grad" else "read"
