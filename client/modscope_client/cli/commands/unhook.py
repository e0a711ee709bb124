"""`modscope unhook`: interventions and watches ended."""

from __future__ import annotations

import click

from modscope_client.cli.arguments import HOOK_ID
from modscope_client.cli.intervention_text import INTERVENTIONS
from modscope_client.cli.render import emit
from modscope_client.cli.settings import Settings
from modscope_client.cli.verbs import Verb

__all__ = ["command"]


@click.command("unhook", cls=Verb, examples=("modscope unhook intervention-1", "modscope unhook --all"))
@click.argument("ids", metavar="[ID]...", nargs=-1, type=HOOK_ID)
@click.option("--all", "everything", is_flag=True, help="All interventions on the model, whoever made them.")
@click.pass_obj
def command(settings: Settings, ids: tuple[str, ...], everything: bool) -> None:
    """End interventions and watches.

    ID is one that 'modscope hooks' lists. No later call is changed; prints the interventions that it
    has ended, as they were at the end.
    """
    if everything == bool(ids):
        raise click.UsageError("give IDs, or --all")
    with settings.remote_model() as model:
        emit(settings.output, INTERVENTIONS, model.unhook(*ids), nothing="no intervention was ended")
