"""What can be changed in a model, asynchronously: the twin of modscope_client/model_changes.py."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from modscope_client import convert, requests, rpcs
from modscope_client.aio.calls import Calls
from modscope_client.channel import BULK_BYTES
from modscope_client.types import LoadResult, Operation

if TYPE_CHECKING:
    from modscope_client.state_dict import Progress

__all__ = ["ModelChanges"]


class ModelChanges:
    """What can be changed in a model."""

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
    ) -> Operation:
        """Write a parameter or buffer in place; the optimizer keeps its tensor.

        array: a numpy array, a torch tensor, or numbers in lists, of the target's shape; or fill= one
        number. An array of another dtype is refused unless `cast`, nan and inf unless
        `allow_non_finite`. Raises InvalidArgument with both shapes or dtypes, and changes nothing then.
        """
        from modscope_client.transfer import write_frames

        first, tensor = requests.write(
            self.name, path, array, cast=cast, fill=fill, allow_non_finite=allow_non_finite
        )
        frames = write_frames(first, tensor)
        bulk = tensor is not None and len(tensor.data) > BULK_BYTES
        return convert.operation((await self._calls.upload(rpcs.WRITE_TENSOR, frames, bulk=bulk)).operation)

    async def freeze(self, glob: str = "*", type: str | type | None = None, force: bool = False) -> Operation:
        """Set requires_grad to False. Raises FailedPrecondition where nothing would be left to train."""
        asked = requests.freeze(self.name, glob, type, force=force)
        return await self._change(rpcs.FREEZE, asked)

    async def unfreeze(self, glob: str = "*", type: str | type | None = None) -> Operation:
        """Set requires_grad to True."""
        asked = requests.unfreeze(self.name, glob, type)
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
        dry_run: bool = False,
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
            dry_run=dry_run,
            arguments=scheme_arguments,
        )
        return await self._change(rpcs.REINITIALIZE, asked)

    async def load_state_dict(
        self,
        file_or_dict: str | os.PathLike[str] | Mapping[str, Any],
        strict: bool = True,
        *,
        progress: Progress | None = None,
    ) -> LoadResult:
        """Load a safetensors file or a mapping from keys to arrays: all of it at one step, or nothing.

        Raises FailedPrecondition (KEYS_MISMATCH) for missing or unexpected keys where `strict`,
        InvalidArgument for shapes, all at once.
        """
        from modscope_client.state_dict import open_upload

        with open_upload(file_or_dict) as upload:
            frames = upload.frames(self.name, strict=strict, progress=progress)
            answer = await self._calls.upload(rpcs.UPLOAD, frames, bulk=upload.total > BULK_BYTES)
        return LoadResult(
            convert.operation(answer.operation), list(answer.missing_keys), list(answer.unexpected_keys)
        )

    async def _change(self, rpc: rpcs.Rpc[Any, Any], asked: object) -> Operation:
        return convert.operation((await self._calls.unary(rpc, asked)).operation)
