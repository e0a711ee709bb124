"""`modscope hooks`: the hooks that modscope has put on a model."""

from __future__ import annotations

import click

from modscope_client.cli.messages import note
from modscope_client.cli.render import emit
from modscope_client.cli.settings import Settings
from modscope_client.cli.verbs import Verb
from modscope_client.cli.views import HOOKS

__all__ = ["command"]


@click.command("hooks", cls=Verb, examples=("modscope hooks", "modscope hooks -o json"))
@click.pass_obj
def command(settings: Settings) -> None:
    """List the hooks that modscope has put on a model.

    Those of watches go when nobody watches any more, those of interventions with these. Those of the
    safe point, on the root alone, tell where a step begins and ends.

    A hook is armed while it is too early to say more, fired once it has, and blind where it should have
    fired and has not, with the reason. A remedy is how it is made to fire in compiled code, and what that
    has cost. An intervention that does nothing is told of, with the reason.
    """
    with settings.remote_model() as model:
        hooks = model.hooks()
        made = model.interventions() if any(hook.intervention_id for hook in hooks) else []
    emit(settings.output, HOOKS, hooks, nothing="modscope has no hook on this model")
    for one in made:
        if one.state != "acting":
            note(f"{one.id} ({one.action}) is {one.state}: {one.note}")
