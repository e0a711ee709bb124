"""Handles of the async client: the twin of modscope_client/handles.py, name for name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modscope.paths import literal
from modscope_client import requests
from modscope_client.aio.model_changes import ModelChanges
from modscope_client.aio.model_interventions import ModelInterventions
from modscope_client.aio.model_reads import ModelReads
from modscope_client.types import BufferInfo, ModuleInfo, ParameterInfo

if TYPE_CHECKING:
    from modscope_client.aio.model_interventions import InterventionHandle
    from modscope_client.aio.subscription import Subscription
    from modscope_client.types import Array, Operation

__all__ = ["RemoteModel", "RemoteModule", "RemoteParameter"]


class RemoteModel(ModelReads, ModelChanges, ModelInterventions):
    """A registered model, where it lives. `module_info().repr` shows it as PyTorch does."""

    def __repr__(self) -> str:
        return f"<RemoteModel {self.name!r} at {self._calls.endpoint.address}>"

    def module(self, path: str = "") -> RemoteModule:
        """A handle to one of its modules; "" is the root."""
        return RemoteModule(self, path)

    def parameter(self, path: str) -> RemoteParameter:
        """A handle to one of its parameters or buffers."""
        return RemoteParameter(self, path)


class RemoteModule:
    """A module of a model, where it lives. `info().repr` shows it as PyTorch does."""

    def __init__(self, model: RemoteModel, path: str) -> None:
        self.model = model
        self.path = path

    def __repr__(self) -> str:
        return f"<RemoteModule {self.path!r} of {self.model!r}>"

    async def info(self) -> ModuleInfo:
        """What it is now, its repr included."""
        return await self.model.module_info(self.path)

    async def children(self) -> list[ModuleInfo]:
        """Its immediate children, in order."""
        return await self.model.children(self.path)

    async def modules(self, glob: str = "*", type: str | type | None = None) -> list[ModuleInfo]:
        """It and the modules below it, in order; the glob is on their paths from the root of the model."""
        return await self.model.modules(glob, type, root=self.path)

    async def parameters(self, type: str | type | None = None, *, stats: bool = False) -> list[ParameterInfo]:
        """Its parameters and those of the modules below it, in order."""
        return await self.model.parameters(self.path or "*", type, stats=stats)

    async def buffers(self, type: str | type | None = None, *, stats: bool = False) -> list[BufferInfo]:
        """Its buffers and those of the modules below it, in order."""
        return await self.model.buffers(self.path or "*", type, stats=stats)

    async def freeze(self, type: str | type | None = None, force: bool = False, **options: Any) -> Operation:
        """Freeze all parameters in it, with the options of RemoteModel.freeze."""
        return await self.model.freeze(self.path or "*", type, force, **options)

    async def unfreeze(self, type: str | type | None = None, **options: Any) -> Operation:
        """Unfreeze all parameters in it, with the options of RemoteModel.unfreeze."""
        return await self.model.unfreeze(self.path or "*", type, **options)

    async def reinitialize(self, **options: Any) -> Operation:
        """Initialise it and the modules below it anew, with the options of RemoteModel.reinitialize."""
        return await self.model.reinitialize(requests.subtree(self.path), **options)

    def watch(self, **options: Any) -> Subscription:
        """Watch this module alone, with the options of RemoteModel.watch."""
        return self.model.watch(literal(self.path), **options)

    async def intervene(self, **options: Any) -> InterventionHandle:
        """Change what flows through this module alone, with the options of RemoteModel.intervene."""
        return await self.model.intervene(literal(self.path), **options)


class RemoteParameter:
    """A parameter or buffer of a model, where it lives."""

    def __init__(self, model: RemoteModel, path: str) -> None:
        self.model = model
        self.path = path

    def __repr__(self) -> str:
        return f"<RemoteParameter {self.path!r} of {self.model!r}>"

    async def info(self, *, stats: bool = False) -> ParameterInfo | BufferInfo:
        """What it is now."""
        return (await self.model.tensor(self.path, stats=stats)).info

    async def read(self, what: str = "value") -> Array:
        """Its elements as a numpy array of its own."""
        return await self.model.read(self.path, what)

    async def grad(self) -> Array:
        """Its gradient. Raises FailedPrecondition (NO_GRAD) where it has none now."""
        return await self.model.read(self.path, "grad")

    async def write(self, array: Any = None, **options: Any) -> Operation:
        """Write it in place, with the options of RemoteModel.write."""
        return await self.model.write(self.path, array, **options)

    async def freeze(self, force: bool = False, **options: Any) -> Operation:
        """Set its requires_grad to False, with the options of RemoteModel.freeze."""
        return await self.model.freeze(self.path, force=force, **options)

    async def unfreeze(self, **options: Any) -> Operation:
        """Set its requires_grad to True, with the options of RemoteModel.unfreeze."""
        return await self.model.unfreeze(self.path, **options)

    async def digest(self) -> str:
        """The digest of its elements."""
        return await self.model.digest(self.path)
