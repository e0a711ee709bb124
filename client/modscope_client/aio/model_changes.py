"""What can be changed in a model, asynchronously: the twin of modscope_client/model_changes.py."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from modscope_client import convert, requests, rpcs
from modscope_client.aio.calls import Calls
from modscope_client.channel import BULK_BYTES
from modscope_client.convert import request

if TYPE_CHECKING:
    from modscope_client.aio.transaction import Transaction
    from modscope_client.state_dict import Progress
    from modscope_client.types import LoadResult, Operation, Snapshot

__all__ = ["ModelChanges"]


class ModelChanges:
    """What can be changed in a model; see the top of its twin for expected, dry_run and request_id."""

    def __init__(self, calls: Calls, name: str) -> None:
        self._calls = calls
        self.name = name

    async def write(
        self,
        path: str,
        array: Any = None,
        *,
        cast: bool = False,
        fill: float | int | bool | None = None,
        allow_non_finite: bool = False,
        expected: str | None = None,
        dry_run: bool = False,
        request_id: str | None = None,
    ) -> Operation:
        """Write a parameter or buffer in place; the optimizer keeps its tensor.

        array: a numpy array, a torch tensor, or numbers in lists, of the target's shape; or fill= one
        number. An array of another dtype is refused unless `cast`, nan and inf unless
        `allow_non_finite`. expected is one digest. Raises InvalidArgument with both shapes or dtypes,
        and changes nothing then.
        """
        from modscope_client.transfer import tensor_frames

        digests = None if expected is None else {path: expected}
        first, tensor = requests.write(
            self.name,
            path,
            array,
            cast=cast,
            fill=fill,
            allow_non_finite=allow_non_finite,
            options=requests.options(digests, dry_run, request_id),
        )
        frames = tensor_frames(first, tensor)
        bulk = tensor is not None and len(tensor.data) > BULK_BYTES
        return convert.operation((await self._calls.upload(rpcs.WRITE_TENSOR, frames, bulk=bulk)).operation)

    async def freeze(
        self,
        glob: str = "*",
        type: str | type | None = None,
        force: bool = False,
        *,
        norm_stats: bool = False,
        expected: Mapping[str, str] | None = None,
        dry_run: bool = False,
        request_id: str | None = None,
    ) -> Operation:
        """Set requires_grad to False: whatever the optimizer does, the values stay as they are.

        norm_stats freezes the running statistics of the normalisation layers that own them, too.
        Raises FailedPrecondition where nothing would be left to train, unless `force`.
        """
        options = requests.options(expected, dry_run, request_id)
        asked = requests.freeze(self.name, glob, type, force=force, norm_stats=norm_stats, options=options)
        return await self._change(rpcs.FREEZE, asked)

    async def unfreeze(
        self,
        glob: str = "*",
        type: str | type | None = None,
        *,
        expected: Mapping[str, str] | None = None,
        dry_run: bool = False,
        request_id: str | None = None,
    ) -> Operation:
        """Set requires_grad to True."""
        options = requests.options(expected, dry_run, request_id)
        asked = requests.unfreeze(self.name, glob, type, options=options)
        return await self._change(rpcs.UNFREEZE, asked)

    async def reinitialize(
        self,
        glob: str = "*",
        *,
        type: str | type | None = None,
        parameter: str | None = None,
        scheme: str = "reset_parameters",
        seed: int | None = None,
        reset_optimizer: bool = True,
        expected: Mapping[str, str] | None = None,
        dry_run: bool = False,
        request_id: str | None = None,
        **scheme_arguments: Any,
    ) -> Operation:
        """Initialise parameters anew, in the order of nn.Module.apply; seeded, as after torch.manual_seed.

        scheme: an in-place function of torch.nn.init by name, or "reset_parameters". Raises
        InvalidArgument, before anything is changed, for a scheme that cannot serve one of the tensors.
        """
        asked = requests.reinitialize(
            self.name,
            glob,
            type,
            parameter,
            scheme,
            seed,
            reset_optimizer=reset_optimizer,
            arguments=scheme_arguments,
            options=requests.options(expected, dry_run, request_id),
        )
        return await self._change(rpcs.REINITIALIZE, asked)

    async def load_state_dict(
        self,
        file_or_dict: str | os.PathLike[str] | Mapping[str, Any],
        strict: bool = True,
        *,
        progress: Progress | None = None,
        expected: Mapping[str, str] | None = None,
        dry_run: bool = False,
        request_id: str | None = None,
    ) -> LoadResult:
        """Load a safetensors file or a mapping from keys to arrays: all of it at one step, or nothing.

        Raises FailedPrecondition (KEYS_MISMATCH) for missing or unexpected keys where `strict`,
        InvalidArgument for shapes, all at once, NoSuchFile for a file that is not there.
        """
        from modscope_client.state_dict import open_upload
        from modscope_client.types import LoadResult

        options = requests.options(expected, dry_run, request_id)
        with open_upload(file_or_dict) as upload:
            frames = upload.frames(self.name, strict=strict, progress=progress, options=options)
            answer = await self._calls.upload(rpcs.UPLOAD, frames, bulk=upload.total > BULK_BYTES)
        return LoadResult(
            convert.operation(answer.operation), list(answer.missing_keys), list(answer.unexpected_keys)
        )

    async def set_optimizer(
        self,
        group: int | None = None,
        *,
        base_lr: bool = False,
        expected: Mapping[str, str] | None = None,
        dry_run: bool = False,
        request_id: str | None = None,
        **hyperparameters: Any,
    ) -> Operation:
        """Set hyper-parameters such as lr= in one parameter group, or in every one that has parameters of it.

        base_lr: a new lr is also what schedulers compute from from now on; without it a scheduler
        replaces the new lr at its next step. Raises InvalidArgument for a hyper-parameter that a group
        does not have, and for a value of another kind.
        """
        from modscope_client import optimizers

        options = requests.options(expected, dry_run, request_id)
        asked = optimizers.set_optimizer(self.name, group, hyperparameters, base_lr=base_lr, options=options)
        return await self._change(optimizers.SET_OPTIMIZER, asked)

    async def add_to_optimizer(
        self,
        glob: str,
        group: int | None = None,
        *,
        expected: Mapping[str, str] | None = None,
        dry_run: bool = False,
        request_id: str | None = None,
    ) -> Operation:
        """Give parameters that no optimizer holds to one: to a group by its index, or to the only one.

        Raises FailedPrecondition (ALREADY_HELD) where an optimizer holds one of them.
        """
        from modscope.v1 import optimizer_service_pb2
        from modscope_client import optimizers

        asked = request(
            optimizer_service_pb2.AddToOptimizerRequest,
            model=self.name,
            glob=glob,
            group=group,
            options=requests.options(expected, dry_run, request_id),
        )
        return await self._change(optimizers.ADD_TO_OPTIMIZER, asked)

    async def undo(
        self,
        id: str,
        *,
        expected: Mapping[str, str] | None = None,
        dry_run: bool = False,
        request_id: str | None = None,
    ) -> Operation:
        """Put back, bit for bit, what an operation changed; this is an operation too.

        Raises FailedPrecondition (NOT_UNDOABLE) where it is undone already, a later operation has
        changed the same, or what it needs was let go.
        """
        from modscope.v1 import operation_service_pb2
        from modscope_client import ledger

        options = requests.options(expected, dry_run, request_id)
        asked = request(operation_service_pb2.UndoRequest, model=self.name, id=id, options=options)
        return await self._change(ledger.UNDO, asked)

    def transaction(
        self,
        *,
        expected: Mapping[str, str] | None = None,
        dry_run: bool = False,
        request_id: str | None = None,
    ) -> Transaction:
        """Several changes as one: `async with model.transaction() as t: t.write(...); t.freeze(...)`.

        They take effect at one step boundary, in their order, all or none, when the `async with` ends;
        nothing is sent where its block raises. Afterwards `t.operation` tells what was done.
        """
        from modscope_client.aio.transaction import Transaction

        return Transaction(self._calls, self.name, expected, dry_run, request_id)

    async def save_snapshot(self, name: str, directory: str | None = None, replace: bool = False) -> Snapshot:
        """Save model, buffers, optimizers, random states and extras, all of one step, under a name.

        In memory, or below a directory of the server's host. Raises FailedPrecondition
        (SNAPSHOT_EXISTS) where the name is taken, unless `replace`.
        """
        from modscope.v1 import snapshot_service_pb2
        from modscope_client import snapshots

        asked = request(
            snapshot_service_pb2.SaveSnapshotRequest,
            model=self.name,
            name=name,
            directory=directory,
            replace=replace,
        )
        return snapshots.snapshot((await self._calls.unary(snapshots.SAVE_SNAPSHOT, asked)).snapshot)

    async def restore_snapshot(
        self,
        name: str,
        directory: str | None = None,
        *,
        expected: Mapping[str, str] | None = None,
        dry_run: bool = False,
        request_id: str | None = None,
    ) -> Operation:
        """Go back to a snapshot: all of it at one step boundary, or nothing.

        directory: where on the server's host it lies, if it is not one of those known. Raises
        FailedPrecondition (SNAPSHOT_MISMATCH) where the model or an optimizer is built differently now.
        """
        from modscope.v1 import snapshot_service_pb2
        from modscope_client import snapshots

        asked = request(
            snapshot_service_pb2.RestoreSnapshotRequest,
            model=self.name,
            name=name,
            directory=directory,
            options=requests.options(expected, dry_run, request_id),
        )
        return await self._change(snapshots.RESTORE_SNAPSHOT, asked)

    async def drop_snapshot(self, name: str) -> Snapshot:
        """Let a snapshot go; one in a directory is deleted there."""
        from modscope.v1 import snapshot_service_pb2
        from modscope_client import snapshots

        asked = request(snapshot_service_pb2.DropSnapshotRequest, model=self.name, name=name)
        return snapshots.snapshot((await self._calls.unary(snapshots.DROP_SNAPSHOT, asked)).snapshot)

    async def _change(self, rpc: rpcs.Rpc[Any, Any], asked: object) -> Operation:
        return convert.operation((await self._calls.unary(rpc, asked)).operation)
