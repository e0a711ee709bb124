"""`modscope show`: one module, parameter or buffer whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from modscope_client.cli.arguments import ANY_PATH
from modscope_client.cli.details import module_text, tensor_text
from modscope_client.cli.render import emit_document
from modscope_client.cli.serialize import plain
from modscope_client.cli.settings import Settings
from modscope_client.cli.verbs import Verb
from modscope_client.errors import NotFound
from modscope_client.types import ModuleInfo, TensorDetail

if TYPE_CHECKING:
    from modscope_client.handles import RemoteModel

__all__ = ["command"]


@click.command(
    "show", cls=Verb, examples=("modscope show", "modscope show encoder", "modscope show head.weight -o json")
)
@click.argument("path", default="", type=ANY_PATH)
@click.pass_obj
def command(settings: Settings, path: str) -> None:
    """Show one module, parameter or buffer whole.

    A module with what print(module) gives, bounded; a tensor with its statistics and digest.
    Without PATH, the model itself.
    """
    with settings.remote_model() as model:
        found = _find(model, path)
    if isinstance(found, TensorDetail):
        document = {**plain(found.info), "digest": found.digest, "step": found.step}
        emit_document(settings.output, document, name=path, text=lambda: tensor_text(found))
    else:
        emit_document(settings.output, found, name=path, text=lambda: module_text(found))


def _find(model: RemoteModel, path: str) -> ModuleInfo | TensorDetail:
    """The module of that path, or else the tensor. Raises NotFound with what either search would suggest."""
    try:
        return model.module_info(path)
    except NotFound as no_module:
        if no_module.reason != "UNKNOWN_PATH":
            raise
        try:
            return model.tensor(path)
        except NotFound as no_tensor:
            hints = dict.fromkeys(filter(None, (no_module.hint, no_tensor.hint)))
            raise NotFound(
                f"no module, parameter or buffer {path!r}",
                reason=no_tensor.reason,
                hint="; ".join(hints),
                details=no_tensor.details,
            ) from None
