"""`modscope ls`: the immediate children of a module."""

from __future__ import annotations

import click

from modscope_client.cli.arguments import MODULE_PATH
from modscope_client.cli.render import emit
from modscope_client.cli.settings import Settings
from modscope_client.cli.text import path_text
from modscope_client.cli.verbs import Verb
from modscope_client.cli.views import MODULES

__all__ = ["command"]


@click.command("ls", cls=Verb, examples=("modscope ls", "modscope ls encoder.layers", "modscope ls -o name"))
@click.argument("path", default="", type=MODULE_PATH)
@click.pass_obj
def command(settings: Settings, path: str) -> None:
    """List the immediate children of a module.

    As nn.Module.named_children gives them, in order; without PATH, those of the root. Parameters
    are no children: see 'modscope params'.
    """
    with settings.remote_model() as model:
        emit(settings.output, MODULES, model.children(path), nothing=f"{path_text(path)} has no children")
