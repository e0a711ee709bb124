"""Arguments that several verbs share: paths and globs that a shell can complete, types, files."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from modscope_client.cli.settings import Settings

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from modscope_client.handles import RemoteModel

__all__ = [
    "ANY_PATH",
    "HOOK_ID",
    "INPUT_FILE",
    "MODULE_PATH",
    "OPERATION_ID",
    "OUTPUT_FILE",
    "SNAPSHOT_NAME",
    "TENSOR_PATH",
    "assignments",
    "change_options",
    "type_option",
    "write_options",
]

F = TypeVar("F", bound=Callable[..., Any])

_COMPLETION_SECONDS = 1.0
"""How long a shell that completes a path waits for the server."""

INPUT_FILE = click.Path(exists=True, dir_okay=False, readable=True)
OUTPUT_FILE = click.Path(dir_okay=False)


def _modules(model: RemoteModel) -> list[str]:
    return [module.path for module in model.modules()]


def _tensors(model: RemoteModel) -> list[str]:
    return [tensor.path for tensor in (*model.parameters(), *model.buffers())]


class _RemoteName(click.types.StringParamType):
    """Text that a shell can complete with what the model has."""

    name = "text"

    def __init__(self, list_names: Callable[[RemoteModel], list[str]]) -> None:
        self.list_names = list_names

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """The names that begin so; none where no server answers at once."""
        from click.shell_completion import CompletionItem

        settings: Settings = ctx.find_root().obj
        settings.timeout = min(settings.timeout or _COMPLETION_SECONDS, _COMPLETION_SECONDS)
        try:
            with settings.remote_model() as model:
                names = self.list_names(model)
        except Exception:  # a shell that completes has no place for a message
            return []
        return [CompletionItem(name) for name in names if name and name.startswith(incomplete)]


def _anything(model: RemoteModel) -> list[str]:
    return [*_modules(model), *_tensors(model)]


def _operations(model: RemoteModel) -> list[str]:
    return [operation.id for operation in reversed(model.operations())]


def _snapshots(model: RemoteModel) -> list[str]:
    return [snapshot.name for snapshot in model.snapshots()]


def _hook_ids(model: RemoteModel) -> list[str]:
    hooks = model.hooks()
    return list(dict.fromkeys(id for hook in hooks for id in (hook.intervention_id, *hook.watch_ids) if id))


ANY_PATH = _RemoteName(_anything)
HOOK_ID = _RemoteName(_hook_ids)
MODULE_PATH = _RemoteName(_modules)
TENSOR_PATH = _RemoteName(_tensors)
OPERATION_ID = _RemoteName(_operations)
SNAPSHOT_NAME = _RemoteName(_snapshots)


def assignments(
    texts: Iterable[str], *, where: str, example: str, what: str, reserved: frozenset[str]
) -> dict[str, str]:
    """Texts such as std=0.02, by name. Raises BadParameter for others, and for a name given twice.

    where: how the help calls them; what: what they are. reserved: names that are no such thing.
    """
    found: dict[str, str] = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator or not name.isidentifier():
            raise click.BadParameter(f"{text!r} is not NAME=VALUE, such as {example}", param_hint=where)
        if name in reserved:
            raise click.BadParameter(f"{name!r} is no {what}", param_hint=where)
        if name in found:
            raise click.BadParameter(f"{name!r} is given twice", param_hint=where)
        found[name] = value
    return found


def type_option(whose: str) -> Callable[[F], F]:
    """`--type T`, given to the verb as `type_`; `whose` says of what it is the type."""
    return click.option(
        "--type",
        "type_",
        metavar="T",
        help=f"Class of {whose}, by isinstance, such as Linear.",
    )


def change_options(verb: F) -> F:
    """`--expected PATH=DIGEST`, `--dry-run`, `--request-id`, given to the verb as the client takes them."""
    digests = click.option(
        "--expected",
        multiple=True,
        metavar="PATH=DIGEST",
        callback=_digests,
        help="Refuse where this tensor has another digest.",
    )
    return digests(_unconditional_options(verb))


def write_options(verb: F) -> F:
    """`change_options` of a verb with one target: `--expected DIGEST`."""
    digest = click.option("--expected", metavar="DIGEST", help="Refuse where it has another digest.")
    return digest(_unconditional_options(verb))


def _unconditional_options(verb: F) -> F:
    dry_run = click.option(
        "--dry-run", is_flag=True, help="Check, tell what would be done, and change nothing."
    )
    request_id = click.option(
        "--request-id", metavar="ID", help="Change nothing where a call with this ID has."
    )
    return dry_run(request_id(verb))


def _digests(
    context: click.Context, parameter: click.Parameter, texts: tuple[str, ...]
) -> dict[str, str] | None:
    digests: dict[str, str] = {}
    for text in texts:
        path, separator, digest = text.rpartition("=")
        if not separator or not path or not digest:
            raise click.BadParameter(f"{text!r} is not PATH=DIGEST; 'modscope show PATH' tells the digest")
        digests[path] = digest
    return digests or None
