"""`modscope models`: the models of a server."""

from __future__ import annotations

import click

from modscope_client.cli.render import emit
from modscope_client.cli.settings import Settings
from modscope_client.cli.verbs import Verb
from modscope_client.cli.views import MODELS

__all__ = ["command"]


@click.command("models", cls=Verb, examples=("modscope models", "modscope models -o json"))
@click.pass_obj
def command(settings: Settings) -> None:
    """List the models that a server has.

    Each with its step, its size, and whether the server lets itself be written to.
    """
    with settings.client() as client:
        emit(settings.output, MODELS, client.models(), nothing="the server has no model")
