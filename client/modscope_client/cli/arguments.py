"""Arguments that several verbs share: paths and globs that a shell can complete, types, files."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from modscope_client.cli.settings import Settings

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from modscope_client.handles import RemoteModel

__all__ = ["ANY_PATH", "INPUT_FILE", "MODULE_PATH", "OUTPUT_FILE", "TENSOR_PATH", "type_option"]

F = TypeVar("F", bound=Callable[..., Any])

_COMPLETION_SECONDS = 1.0
"""How long a shell that completes a path waits for the server."""

INPUT_FILE = click.Path(exists=True, dir_okay=False, readable=True)
OUTPUT_FILE = click.Path(dir_okay=False)


def _modules(model: RemoteModel) -> list[str]:
    return [module.path for module in model.modules()]


def _tensors(model: RemoteModel) -> list[str]:
    return [tensor.path for tensor in (*model.parameters(), *model.buffers())]


class _RemotePath(click.types.StringParamType):
    """Text that a shell can complete with what the model has."""

    name = "text"

    def __init__(self, list_paths: Callable[[RemoteModel], list[str]]) -> None:
        self.list_paths = list_paths

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """The paths that begin so; none where no server answers at once."""
        from click.shell_completion import CompletionItem

        settings: Settings = ctx.find_root().obj
        settings.timeout = min(settings.timeout or _COMPLETION_SECONDS, _COMPLETION_SECONDS)
        try:
            with settings.remote_model() as model:
                paths = self.list_paths(model)
        except Exception:  # a shell that completes has no place for a message
            return []
        return [CompletionItem(path) for path in paths if path and path.startswith(incomplete)]


def _anything(model: RemoteModel) -> list[str]:
    return [*_modules(model), *_tensors(model)]


ANY_PATH = _RemotePath(_anything)
MODULE_PATH = _RemotePath(_modules)
TENSOR_PATH = _RemotePath(_tensors)


def type_option(whose: str) -> Callable[[F], F]:
    """`--type T`, given to the verb as `type_`; `whose` says of what it is the type."""
    return click.option(
        "--type",
        "type_",
        metavar="T",
        help=f"Class of {whose}, by isinstance, such as Linear.",
    )
