"""ModelService: models, modules, and running forward."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from modscope import wire
from modscope.tensor import TensorData, chunks
from modscope.v1 import model_pb2, tensor_pb2, value_pb2
from modscope.v1 import model_service_pb2 as messages
from modscope.wire import Frame
from modscope_server.errors import BadRequest
from modscope_server.inspection.forward import Mode, run_forward
from modscope_server.inspection.records import ModuleRecord
from modscope_server.inspection.selection import select_module_records
from modscope_server.inspection.structure import child_records, located_modules, module_record, module_text
from modscope_server.inspection.tensors import from_data, nbytes, to_data
from modscope_server.inspection.values import Node, flatten, unflatten
from modscope_server.runtime.registry import Registered
from modscope_server.services import convert
from modscope_server.services.call import Call
from modscope_server.services.serving import Serving, batches
from modscope_server.services.uploads import Uploads

__all__ = ["ModelServicer"]

T = TypeVar("T")
_PAGE = 1000
_MODES: dict[int, Mode] = {
    messages.FORWARD_MODE_UNSPECIFIED: "eval",
    messages.FORWARD_MODE_EVAL: "eval",
    messages.FORWARD_MODE_TRAIN: "train",
    messages.FORWARD_MODE_CURRENT: "current",
}


class ModelServicer:
    """Translates ModelService's calls."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    def list_models(self, request: messages.ListModelsRequest, call: Call) -> messages.ListModelsResponse:
        """The registered models, in pages."""
        names, following = _page(self._serving.registry.names, request.page_size, request.page_token)
        models = [self._model_info(self._serving.registry.get(name)) for name in names]
        return messages.ListModelsResponse(models=models, next_page_token=following)

    def get_model(self, request: messages.GetModelRequest, call: Call) -> messages.GetModelResponse:
        """One model."""
        return messages.GetModelResponse(model=self._model_info(self._serving.registry.get(request.model)))

    def list_children(
        self, request: messages.ListChildrenRequest, call: Call
    ) -> messages.ListChildrenResponse:
        """The immediate children of a module, in pages."""
        root = self._serving.registry.get(request.model).root
        answer = self._serving.safepoint.peek(lambda: child_records(root, request.path))
        records, following = _page(answer.value, request.page_size, request.page_token)
        response = messages.ListChildrenResponse(next_page_token=following, step=answer.step)
        for record in records:
            convert.module_info(record, into=response.modules.add())
        return response

    def list_modules(
        self, request: messages.ListModulesRequest, call: Call
    ) -> Iterator[messages.ListModulesResponse]:
        """The modules that match, in batches."""
        root = self._serving.registry.get(request.model).root

        def select() -> Iterable[ModuleRecord]:
            glob = request.glob if request.HasField("glob") else "*"
            under = request.root if request.HasField("root") else None
            depth = request.depth if request.HasField("depth") else None
            return select_module_records(root, glob, request.type, under, depth)

        answer = self._serving.safepoint.peek(select)
        for batch in batches(answer.value):
            response = messages.ListModulesResponse(step=answer.step)
            for record in batch:
                convert.module_info(record, into=response.modules.add())
            yield response

    def get_module(self, request: messages.GetModuleRequest, call: Call) -> messages.GetModuleResponse:
        """One module, its repr included."""
        root = self._serving.registry.get(request.model).root
        answer = self._serving.safepoint.peek(
            lambda: (module_record(root, request.path), module_text(root, request.path))
        )
        return messages.GetModuleResponse(module=convert.module_info(*answer.value), step=answer.step)

    def forward(
        self, requests: Iterator[Frame[messages.ForwardRequest]], call: Call
    ) -> Iterator[Frame[messages.ForwardResponse]]:
        """Run the model on what comes, and give what it returns."""
        with Uploads(self._serving.budget) as uploads:
            first = next(requests, Frame(messages.ForwardRequest())).header
            root = self._serving.registry.get(first.model).root
            mode = _mode(first.mode)
            args = [convert.node_of(value) for value in first.args]
            kwargs = convert.node_of(value_pb2.Value(mapping=first.kwargs))
            _receive(requests, uploads, first.tensors)
            tensors = [from_data(data) for data in uploads.finish()]
            named = unflatten(kwargs, tensors)
            positional = [unflatten(node, tensors) for node in args]

            def run() -> tuple[Node, list[TensorData]]:
                structure, outputs = flatten(run_forward(root, positional, named, mode))
                uploads.reserve(sum(map(nbytes, outputs)))
                return structure, [to_data(output) for output in outputs]

            answer = self._serving.run(call, run)
            structure, outputs = answer.value
            value = convert.value_of(structure)
            yield Frame(messages.ForwardResponse(value=value, step=answer.step, tensors=len(outputs)))
            for position, output in enumerate(outputs):
                spec = wire.spec_of(output.dtype, output.shape, len(output.data))
                header = tensor_pb2.TensorHeader(key=str(position), spec=spec)
                yield Frame(messages.ForwardResponse(tensor=header))
                for chunk in chunks(output.data):
                    yield Frame(messages.ForwardResponse(), chunk)

    def _model_info(self, registered: Registered) -> model_pb2.ModelInfo:
        root, groups = registered.root, registered.groups()
        answer = self._serving.safepoint.peek(
            lambda: (module_record(root, ""), len(located_modules(root)), groups.count_for(root))
        )
        record, modules, optimizers = answer.value
        return model_pb2.ModelInfo(
            name=registered.name,
            type=record.type,
            training=record.training,
            step=answer.step,
            modules=modules,
            parameters=record.parameters,
            trainable_parameters=record.trainable_parameters,
            optimizers=optimizers,
            writable=self._serving.config.writable,
        )


def _receive(requests: Iterator[Frame[messages.ForwardRequest]], uploads: Uploads, expected: int) -> None:
    """Take in the tensors of a forward call."""
    for frame in requests:
        if frame.header.HasField("tensor"):
            name = f"tensor {uploads.count}"
            uploads.begin(name, *convert.spec_from(frame.header.tensor.spec, "tensor.spec"))
        uploads.feed(frame.data)
    if uploads.count != expected:
        raise BadRequest(
            f"the first message announces {expected} tensors, and {uploads.count} came",
            hint="send as many tensors as the field `tensors` says",
            field="tensors",
        )


def _mode(number: int) -> Mode:
    if number not in _MODES:
        raise BadRequest(f"mode has no value {number}", hint="choose from eval, train, current", field="mode")
    return _MODES[number]


def _page(items: Sequence[T], size: int, token: str) -> tuple[Sequence[T], str]:
    """The items of one page, and the token of the next. A token is the position at which its page begins."""
    if size < 0:
        raise BadRequest(f"page_size is {size}", hint="give 0 to leave it to the server", field="page_size")
    known = len(token) < 19 and token.isascii() and token.isdigit() and int(token) <= len(items)
    if token and not known:
        raise BadRequest(
            f"page_token {token!r} is none that this call gave",
            hint="begin with an empty one",
            field="page_token",
        )
    start = int(token or 0)
    end = start + min(size or _PAGE, _PAGE)
    return items[start:end], str(end) if end < len(items) else ""
