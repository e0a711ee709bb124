"""`modscope completion`: the completion script of a shell."""

from __future__ import annotations

import click

from modscope_client.cli.verbs import Verb

__all__ = ["command"]


@click.command(
    "completion",
    cls=Verb,
    examples=(
        'eval "$(modscope completion bash)"              # in ~/.bashrc',
        'eval "$(modscope completion zsh)"               # in ~/.zshrc',
        "modscope completion fish > ~/.config/fish/completions/modscope.fish",
    ),
)
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
def command(shell: str) -> None:
    """Print the completion script of a shell.

    It completes verbs, options, and the paths of the model that the verb would reach.
    """
    from click.shell_completion import get_completion_class

    from modscope_client.cli.main import COMPLETION_VARIABLE, program

    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"click has no completion for {shell!r}")
    click.echo(kind(program, {}, "modscope", COMPLETION_VARIABLE).source())
