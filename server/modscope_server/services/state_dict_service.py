"""StateDictService: the whole state_dict, down and up, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from modscope.v1 import state_dict_service_pb2 as messages
from modscope.wire import Frame
from modscope_server.errors import BadRequest
from modscope_server.inspection.state_dict import check_load, entries
from modscope_server.inspection.state_dict_change import LoadReport, plan_load
from modscope_server.inspection.tensors import dtype_name, from_data, nbytes, shape_of
from modscope_server.services import convert
from modscope_server.services.auth import changes
from modscope_server.services.call import Call
from modscope_server.services.filling import added
from modscope_server.services.serving import Serving, batches
from modscope_server.services.uploads import Uploads

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["StateDictServicer"]


class StateDictServicer:
    """Translates StateDictService's calls."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    def list_keys(self, request: messages.ListKeysRequest, call: Call) -> Iterator[messages.ListKeysResponse]:
        """The keys with dtype and shape, in batches; the first also tells what is not carried."""
        root = self._serving.registry.get(request.model).root
        answer = self._serving.safepoint.peek(lambda: entries(root))
        carried, not_carried = answer.value
        for batch in batches(carried):
            response = messages.ListKeysResponse(not_carried=not_carried, step=answer.step)
            for key, tensor in batch:
                header = added(response.entries, convert.HEADER)
                convert.tensor_header(key, dtype_name(tensor), shape_of(tensor), nbytes(tensor), header)
            yield response
            not_carried = []

    def download(
        self, request: messages.DownloadRequest, call: Call
    ) -> Iterator[Frame[messages.DownloadResponse]]:
        """All tensors, as they are at one step."""
        root = self._serving.registry.get(request.model).root
        not_carried: list[str] = []

        def collect() -> list[tuple[str, Tensor]]:
            carried, not_carried[:] = entries(root)
            return carried

        with self._serving.staged(call, collect) as staged:
            opening = messages.DownloadResponse(step=staged.step, not_carried=not_carried)
            for key, dtype, shape, _, size in staged.entries:
                convert.tensor_header(key, dtype, shape, size, added(opening.entries, convert.HEADER))
            yield Frame(opening)
            for chunk in staged.chunks():
                begins = chunk.entry if chunk.begins else None
                yield Frame(messages.DownloadResponse(begins=begins), chunk.data)

    @changes
    def upload(
        self, requests: Iterator[Frame[messages.UploadRequest]], call: Call
    ) -> messages.UploadResponse:
        """Check what is announced, take it in, then load all of it at one safe point, or nothing."""
        with Uploads(self._serving.budget) as uploads:
            opening = next(requests, Frame(messages.UploadRequest()))
            first, data = opening.header, opening.data
            registered = self._serving.registry.get(first.model)
            root, strict = registered.root, not first.lenient
            specs = [
                (entry.key, *convert.spec_from(entry.spec, f"entries[{position}].spec"))
                for position, entry in enumerate(first.entries)
            ]
            announced = [(key, dtype, shape) for key, dtype, shape, _ in specs]
            plan = self._serving.safepoint.peek(lambda: check_load(root, announced, strict)).value
            _receive(first, data, requests, specs, uploads)
            keys = [key for key, _, _ in announced]
            given = dict(zip(keys, map(from_data, uploads.finish()), strict=True))
            report = LoadReport(plan)
            operation = self._serving.change(
                call,
                registered,
                "load_state_dict",
                lambda: plan_load(root, given, strict, plan, report),
                first.options,
            )
        return messages.UploadResponse(
            operation=operation, missing_keys=report.missing, unexpected_keys=report.unexpected
        )


def _receive(
    first: messages.UploadRequest,
    data: bytes | bytearray | memoryview,
    requests: Iterator[Frame[messages.UploadRequest]],
    specs: list[tuple[str, str, tuple[int, ...], int]],
    uploads: Uploads,
) -> None:
    """Take in the tensors in the order in which they were announced."""
    header = first
    while True:
        if header.HasField("begins"):
            if header.begins != uploads.count or header.begins >= len(specs):
                raise BadRequest(
                    f"tensor {header.begins} begins where tensor {uploads.count} of {len(specs)} is due",
                    hint="send the tensors in the order of `entries`, each once",
                    field="begins",
                )
            uploads.begin(*specs[header.begins])
        uploads.feed(data)
        following = next(requests, None)
        if following is None:
            break
        header, data = following.header, following.data
    if uploads.count != len(specs):
        raise BadRequest(
            f"{len(specs)} tensors are announced, and {uploads.count} came",
            hint="send every tensor of `entries`",
            field="entries",
        )
