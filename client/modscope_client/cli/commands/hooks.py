"""`modscope hooks`: the hooks that modscope has put on a model."""

from __future__ import annotations

import click

from modscope_client.cli.render import emit
from modscope_client.cli.settings import Settings
from modscope_client.cli.verbs import Verb
from modscope_client.cli.views import HOOKS

__all__ = ["command"]


@click.command("hooks", cls=Verb, examples=("modscope hooks", "modscope hooks -o json"))
@click.pass_obj
def command(settings: Settings) -> None:
    """List the hooks that modscope has put on a model.

    Those of watches go when nobody watches any more. Those of the safe point, on the root alone,
    tell where a step begins and ends.
    """
    with settings.remote_model() as model:
        emit(settings.output, HOOKS, model.hooks(), nothing="modscope has no hook on this model")
