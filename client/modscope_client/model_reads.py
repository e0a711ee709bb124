"""What can be asked of a model: structure, tensors, state_dict, forward, watches.

What a listing has no use for is imported where it is used, so that `modscope ls` starts quickly.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal, overload

from modscope.v1 import hook_service_pb2, model_service_pb2, parameter_service_pb2, state_dict_service_pb2
from modscope_client import convert, requests, rpcs
from modscope_client.calls import Calls
from modscope_client.convert import request
from modscope_client.types import (
    BufferInfo,
    HookInfo,
    ModelInfo,
    ModuleInfo,
    ParameterInfo,
    StateDictKeys,
    TensorDetail,
)

if TYPE_CHECKING:
    from modscope_client.state_dict import Download, Progress
    from modscope_client.subscription import Subscription
    from modscope_client.types import Array, Operation, OperationList, OptimizerGroup, OptimizerList, Snapshot

__all__ = ["ModelReads"]


class ModelReads:
    """What can be asked of a model."""

    def __init__(self, calls: Calls, name: str) -> None:
        self._calls = calls
        self.name = name

    def info(self) -> ModelInfo:
        """What it is now."""
        asked = request(model_service_pb2.GetModelRequest, model=self.name)
        return convert.model_info(self._calls.unary(rpcs.GET_MODEL, asked).model)

    def children(self, path: str = "") -> list[ModuleInfo]:
        """The immediate children of a module, in order, as named_children gives them."""
        found: list[ModuleInfo] = []
        token = ""
        while True:
            asked = request(
                model_service_pb2.ListChildrenRequest, model=self.name, path=path, page_token=token
            )
            page = self._calls.unary(rpcs.LIST_CHILDREN, asked)
            found += convert.module_infos(page.modules)
            token = page.next_page_token
            if not token:
                return found

    def modules(
        self,
        glob: str = "*",
        type: str | type | None = None,
        *,
        root: str | None = None,
        depth: int | None = None,
    ) -> list[ModuleInfo]:
        """Modules in order, as named_modules gives them, the root "" included.

        root: only this module and what is below it; depth: at most so many levels below it.
        """
        asked = requests.list_modules(self.name, glob, type, root, depth)
        found: list[ModuleInfo] = []
        self._calls.listing(
            rpcs.LIST_MODULES, asked, lambda batch: found.extend(convert.module_infos(batch.modules))
        )
        return found

    def module_info(self, path: str = "") -> ModuleInfo:
        """One module whole, its repr included."""
        asked = request(model_service_pb2.GetModuleRequest, model=self.name, path=path)
        return convert.module_info(self._calls.unary(rpcs.GET_MODULE, asked).module)

    def parameters(
        self,
        glob: str = "*",
        type: str | type | None = None,
        *,
        stats: bool = False,
        requires_grad: bool | None = None,
    ) -> list[ParameterInfo]:
        """Parameters in order, as named_parameters gives them; a module's path selects all under it."""
        asked = requests.list_parameters(self.name, glob, type, stats=stats, requires_grad=requires_grad)
        found: list[ParameterInfo] = []
        self._calls.listing(
            rpcs.LIST_PARAMETERS,
            asked,
            lambda batch: found.extend(map(convert.parameter_info, batch.parameters)),
        )
        return found

    def buffers(
        self, glob: str = "*", type: str | type | None = None, *, stats: bool = False
    ) -> list[BufferInfo]:
        """Buffers in order, as named_buffers gives them."""
        asked = requests.list_buffers(self.name, glob, type, stats=stats)
        found: list[BufferInfo] = []
        self._calls.listing(
            rpcs.LIST_BUFFERS, asked, lambda batch: found.extend(map(convert.buffer_info, batch.buffers))
        )
        return found

    def tensor(self, path: str, *, stats: bool = True) -> TensorDetail:
        """One parameter or buffer whole: what it is, statistics, digest."""
        asked = request(parameter_service_pb2.GetTensorRequest, model=self.name, path=path, stats=stats)
        return convert.detail(self._calls.unary(rpcs.GET_TENSOR, asked))

    def digest(self, path: str) -> str:
        """The digest of a parameter or buffer. Raises FailedPrecondition where it has no elements."""
        return convert.digest(self.tensor(path, stats=False))

    @overload
    def read(self, path: str, what: str = "value", with_step: Literal[False] = False) -> Array: ...
    @overload
    def read(self, path: str, what: str = "value", *, with_step: Literal[True]) -> tuple[Array, int]: ...
    @overload
    def read(
        self, path: list[str] | tuple[str, ...], what: str = "value", with_step: Literal[False] = False
    ) -> dict[str, Array]: ...
    @overload
    def read(
        self, path: list[str] | tuple[str, ...], what: str = "value", *, with_step: Literal[True]
    ) -> tuple[dict[str, Array], int]: ...
    def read(
        self, path: str | list[str] | tuple[str, ...], what: str = "value", with_step: bool = False
    ) -> Any:
        """A parameter or buffer as a numpy array of its own; a list of paths gives a dict, all of one step.

        what: "value", "grad", or a key of the optimizer's state such as "exp_avg". with_step gives
        (array, step_count). A dtype that numpy and ml_dtypes lack comes as TensorData. Raises NotFound,
        FailedPrecondition (NO_GRAD, NOT_MATERIALIZED), DeadlineExceeded.
        """
        found, step = (
            self._read_one(path, what) if isinstance(path, str) else self._read_all(list(path), what)
        )
        return (found, step) if with_step else found

    def state_dict_keys(self) -> StateDictKeys:
        """The keys of its state_dict, with dtype and shape."""
        from modscope_client.state_dict import keys_of

        asked = request(state_dict_service_pb2.ListKeysRequest, model=self.name)
        batches: list[state_dict_service_pb2.ListKeysResponse] = []
        self._calls.listing(rpcs.LIST_KEYS, asked, batches.append)
        return keys_of(batches)

    def state_dict(self, *, progress: Progress | None = None) -> dict[str, Array]:
        """Its state_dict as arrays, all of one step.

        Small arrays share blocks of at most 32 MiB. The client keeps the memory of arrays that are
        gone, up to 1 GiB, for ten seconds, for a next state_dict.
        """
        from modscope_client.state_dict import ArrayTarget, Download

        target = ArrayTarget(self._calls.memory)
        self._download(Download(target, progress))
        return target.arrays

    def save_state_dict(
        self, file: str | os.PathLike[str], *, progress: Progress | None = None
    ) -> StateDictKeys:
        """Save its state_dict as a safetensors file, in bounded memory; a broken transfer leaves no file."""
        from modscope_client.safetensors_file import Writer
        from modscope_client.state_dict import Download, FileTarget

        with Writer(file) as writer:
            keys = self._download(Download(FileTarget(writer), progress))
            writer.commit()
        return keys

    def forward(self, *args: Any, mode: str = "eval", **kwargs: Any) -> Any:
        """Run it where it lives, without gradients, and give what it returned, tensors as numpy arrays.

        mode: "eval", "train" or "current". Afterwards every flag, buffer and random state is as before.
        Raises InvalidArgument (FORWARD_RAISED) with the model's message where it raised.
        """
        from modscope_client.transfer import Arrivals, forward_frames
        from modscope_client.values import decode

        first, tensors = requests.forward(self.name, args, kwargs, mode)
        came: Arrivals[model_service_pb2.ForwardResponse] = Arrivals()
        self._calls.exchange(rpcs.FORWARD, forward_frames(first, tensors), came.take)
        return decode(came.head.value, came.finish(came.head.tensors))

    def watch(
        self,
        glob: str = "*",
        type: str | type | None = None,
        hooks: str | Iterable[str] = ("forward",),
        payload: str = "stats",
        every: int = 1,
        overflow: str = "drop_oldest",
        queue: int | None = None,
        sample: int | None = None,
        *,
        start: int | None = None,
        stop: int | None = None,
        first_call: bool = False,
        phase: str | None = None,
        max_rate: float | None = None,
        index: str = "",
        dtype: Any = None,
        block_ms: float | None = None,
        keep: float | None = None,
        resume: str | None = None,
        resume_after: int | None = None,
    ) -> Subscription:
        """Watch modules work: `with model.watch(...) as events: for event in events: ...`.

        hooks: forward_pre, forward, backward_pre, backward; at the end of a step also parameter, gradient
        and metric. payload: none, stats, histogram, tensor. sample: statistics and histograms look at no
        more than so many elements of a tensor, and `ValueInfo.sample` states the error. index: a part of
        each tensor, such as "[:, -1, :]". dtype: what whole tensors are cast to, on the server.

        every: only steps whose number is a multiple of it. start, stop: from that step, up to but not
        with that. first_call: only the first call of each module in a step. phase: only "training" or
        "evaluation". max_rate: most events a second, over the time; steps are left out whole.

        overflow: what happens where more than `queue` events wait: drop_oldest, drop_newest, disconnect
        (it ends with ResourceExhausted), block (training waits, at most `block_ms` in a step).
        keep: seconds for which it goes on where the connection breaks, so that
        `watch(resume=watch_id, resume_after=seq)` goes on with it, with what is still held of it.
        """
        from modscope_client.subscription import Subscription
        from modscope_client.watch_request import watch

        asked = watch(
            self.name, glob, type, hooks, payload, every, overflow, queue, sample,
            start=start, stop=stop, first_call=first_call, phase=phase, max_rate=max_rate,
            index=index, dtype=dtype, block_ms=block_ms,
            keep=keep, resume=resume, resume_after=resume_after,
        )  # fmt: skip
        return Subscription(self._calls, asked)

    def hooks(self) -> list[HookInfo]:
        """The hooks that modscope has put on it."""
        asked = request(hook_service_pb2.ListHooksRequest, model=self.name)
        return [convert.hook_info(hook) for hook in self._calls.unary(rpcs.LIST_HOOKS, asked).hooks]

    def operations(self) -> list[Operation]:
        """What was changed in it, newest last, as far as the ledger reaches back."""
        return list(self.operation_list().operations)

    def operation_list(self) -> OperationList:
        """Its operations, and how many older ones the ledger has let go."""
        from modscope_client import ledger

        pages = ledger.Pages(self.name)
        for asked in pages.requests():
            pages.take(self._calls.unary(ledger.LIST_OPERATIONS, asked))
        return pages.finish()

    def operation(self, id: str) -> Operation:
        """One operation as it stands now. Raises NotFound (UNKNOWN_OPERATION)."""
        from modscope.v1 import operation_service_pb2
        from modscope_client import ledger

        asked = request(operation_service_pb2.GetOperationRequest, model=self.name, id=id)
        return convert.operation(self._calls.unary(ledger.GET_OPERATION, asked).operation)

    def optimizers(self) -> list[OptimizerGroup]:
        """The parameter groups of its optimizers, in the order of their index."""
        return list(self.optimizer_list().groups)

    def unheld_parameters(self) -> list[str]:
        """Paths of its parameters that no optimizer holds."""
        return list(self.optimizer_list().unheld)

    def optimizer_list(self) -> OptimizerList:
        """The parameter groups of its optimizers and the parameters that none holds, all of one step."""
        from modscope.v1 import optimizer_service_pb2
        from modscope_client import optimizers

        asked = request(optimizer_service_pb2.ListOptimizersRequest, model=self.name)
        return optimizers.optimizer_list(self._calls.unary(optimizers.LIST_OPTIMIZERS, asked))

    def snapshots(self, directory: str | None = None) -> list[Snapshot]:
        """Its snapshots, oldest first; those below a directory of the server's host too, if one is given."""
        from modscope.v1 import snapshot_service_pb2
        from modscope_client import snapshots

        asked = request(snapshot_service_pb2.ListSnapshotsRequest, model=self.name, directory=directory)
        answer = self._calls.unary(snapshots.LIST_SNAPSHOTS, asked)
        return list(map(snapshots.snapshot, answer.snapshots))

    def _read_one(self, path: str, what: str) -> tuple[Array, int]:
        from modscope_client.arrays import received

        asked = request(parameter_service_pb2.ReadTensorRequest, model=self.name, path=path, what=what)
        answer = self._calls.unary(rpcs.READ_TENSOR, asked)
        head, data = answer.header, answer.data
        if head.too_large:
            found, step = self._read_all([path], what)
            return found[path], step
        return received(head.spec, data), head.step

    def _read_all(self, paths: list[str], what: str) -> tuple[dict[str, Array], int]:
        from modscope_client.transfer import Arrivals

        asked = request(parameter_service_pb2.ReadTensorsRequest, model=self.name, paths=paths, what=what)
        came: Arrivals[parameter_service_pb2.ReadTensorsResponse] = Arrivals()
        self._calls.download(rpcs.READ_TENSORS, asked, came.take)
        return dict(zip(paths, came.finish(len(paths)), strict=True)), came.head.step

    def _download(self, download: Download) -> StateDictKeys:
        asked = request(state_dict_service_pb2.DownloadRequest, model=self.name)
        self._calls.download(rpcs.DOWNLOAD, asked, download.take)
        return download.finish()
