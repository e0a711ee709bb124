"""Handles: a model, a module, a parameter, each a path and a connection. They keep nothing that they read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modscope.paths import literal
from modscope_client import requests
from modscope_client.model_changes import ModelChanges
from modscope_client.model_interventions import ModelInterventions
from modscope_client.model_reads import ModelReads
from modscope_client.types import BufferInfo, ModuleInfo, ParameterInfo

if TYPE_CHECKING:
    from modscope_client.model_interventions import InterventionHandle
    from modscope_client.subscription import Subscription
    from modscope_client.types import Array, Operation

__all__ = ["RemoteModel", "RemoteModule", "RemoteParameter"]


class RemoteModel(ModelReads, ModelChanges, ModelInterventions):
    """A registered model, where it lives. `print` shows it as PyTorch does."""

    def __repr__(self) -> str:
        return f"<RemoteModel {self.name!r} at {self._calls.endpoint.address}>"

    def __str__(self) -> str:
        return self.module_info().repr or ""

    def module(self, path: str = "") -> RemoteModule:
        """A handle to one of its modules; "" is the root."""
        return RemoteModule(self, path)

    def parameter(self, path: str) -> RemoteParameter:
        """A handle to one of its parameters or buffers."""
        return RemoteParameter(self, path)


class RemoteModule:
    """A module of a model, where it lives. `print` shows it as PyTorch does."""

    def __init__(self, model: RemoteModel, path: str) -> None:
        self.model = model
        self.path = path

    def __repr__(self) -> str:
        return f"<RemoteModule {self.path!r} of {self.model!r}>"

    def __str__(self) -> str:
        return self.info().repr or ""

    def info(self) -> ModuleInfo:
        """What it is now, its repr included."""
        return self.model.module_info(self.path)

    def children(self) -> list[ModuleInfo]:
        """Its immediate children, in order."""
        return self.model.children(self.path)

    def modules(self, glob: str = "*", type: str | type | None = None) -> list[ModuleInfo]:
        """It and the modules below it, in order; the glob is on their paths from the root of the model."""
        return self.model.modules(glob, type, root=self.path)

    def parameters(self, type: str | type | None = None, *, stats: bool = False) -> list[ParameterInfo]:
        """Its parameters and those of the modules below it, in order."""
        return self.model.parameters(self.path or "*", type, stats=stats)

    def buffers(self, type: str | type | None = None, *, stats: bool = False) -> list[BufferInfo]:
        """Its buffers and those of the modules below it, in order."""
        return self.model.buffers(self.path or "*", type, stats=stats)

    def freeze(self, type: str | type | None = None, force: bool = False, **options: Any) -> Operation:
        """Freeze all parameters in it, with the options of RemoteModel.freeze."""
        return self.model.freeze(self.path or "*", type, force, **options)

    def unfreeze(self, type: str | type | None = None, **options: Any) -> Operation:
        """Unfreeze all parameters in it, with the options of RemoteModel.unfreeze."""
        return self.model.unfreeze(self.path or "*", type, **options)

    def reinitialize(self, **options: Any) -> Operation:
        """Initialise it and the modules below it anew, with the options of RemoteModel.reinitialize."""
        return self.model.reinitialize(requests.subtree(self.path), **options)

    def watch(self, **options: Any) -> Subscription:
        """Watch this module alone, with the options of RemoteModel.watch."""
        return self.model.watch(literal(self.path), **options)

    def intervene(self, **options: Any) -> InterventionHandle:
        """Change what flows through this module alone, with the options of RemoteModel.intervene."""
        return self.model.intervene(literal(self.path), **options)


class RemoteParameter:
    """A parameter or buffer of a model, where it lives."""

    def __init__(self, model: RemoteModel, path: str) -> None:
        self.model = model
        self.path = path

    def __repr__(self) -> str:
        return f"<RemoteParameter {self.path!r} of {self.model!r}>"

    def info(self, *, stats: bool = False) -> ParameterInfo | BufferInfo:
        """What it is now."""
        return self.model.tensor(self.path, stats=stats).info

    def read(self, what: str = "value") -> Array:
        """Its elements as a numpy array of its own."""
        return self.model.read(self.path, what)

    def grad(self) -> Array:
        """Its gradient. Raises FailedPrecondition (NO_GRAD) where it has none now."""
        return self.model.read(self.path, "grad")

    def write(self, array: Any = None, **options: Any) -> Operation:
        """Write it in place, with the options of RemoteModel.write."""
        return self.model.write(self.path, array, **options)

    def freeze(self, force: bool = False, **options: Any) -> Operation:
        """Set its requires_grad to False, with the options of RemoteModel.freeze."""
        return self.model.freeze(self.path, force=force, **options)

    def unfreeze(self, **options: Any) -> Operation:
        """Set its requires_grad to True, with the options of RemoteModel.unfreeze."""
        return self.model.unfreeze(self.path, **options)

    def digest(self) -> str:
        """The digest of its elements."""
        return self.model.digest(self.path)
