"""`modscope ps`: the servers on this host."""

from __future__ import annotations

import click

from modscope_client.cli.render import emit
from modscope_client.cli.settings import Settings
from modscope_client.cli.verbs import Verb
from modscope_client.cli.views import SERVERS

__all__ = ["command"]


@click.command("ps", cls=Verb, examples=("modscope ps", "modscope ps -o name", "modscope ps -o json"))
@click.pass_obj
def command(settings: Settings) -> None:
    """List the servers on this host.

    Reads what the servers of this user left in the runtime directory, and asks none of them: one
    that has died is not listed, and none is waited for.
    """
    from modscope_client.discovery import servers

    emit(settings.output, SERVERS, servers(), nothing="no server on this host")
