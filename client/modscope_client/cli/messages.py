"""What is said on stderr: notes, hints and errors, coloured on a terminal that wants it."""

from __future__ import annotations

import os

import click

from modscope_client.cli.text import one_line

__all__ = ["fail", "hint", "note", "say", "styled"]


def styled(text: str, **style: bool | str) -> str:
    """The text in a style that click.echo strips again off a terminal; plain where NO_COLOR is set."""
    return text if os.environ.get("NO_COLOR") else click.style(text, **style)  # type: ignore[arg-type]


def say(text: str) -> None:
    """A message, its lines kept, anything that could drive a terminal escaped."""
    click.echo(_safe(text), err=True)


def note(text: str) -> None:
    """Something that the caller should know."""
    click.echo(f"{styled('note:', fg='yellow')} {_safe(text)}", err=True)


def hint(text: str) -> None:
    """What to do next."""
    click.echo(f"{styled('hint:', fg='cyan')} {_safe(text)}", err=True)


def fail(message: str) -> None:
    """What went wrong."""
    click.echo(f"{styled('error:', fg='red', bold=True)} {_safe(message)}", err=True)


def _safe(text: str) -> str:
    return "\n".join(map(one_line, text.split("\n")))
