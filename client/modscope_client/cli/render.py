"""Records to stdout in the form that was asked for: table, json, jsonl, yaml or name."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import click

from modscope_client.cli.messages import say
from modscope_client.cli.serialize import json_line, json_text, yaml_text
from modscope_client.cli.settings import Output
from modscope_client.cli.table import Column, print_table
from modscope_client.cli.text import one_line

__all__ = ["View", "emit", "emit_document"]

R = TypeVar("R", contravariant=True)


@dataclass(frozen=True)
class View(Generic[R]):
    """How records of one kind are shown."""

    columns: Sequence[Column[R]]
    """The columns of their table."""
    name: Callable[[R], str]
    """What `-o name` prints of one."""
    record: Callable[[R], Any] = lambda shown: shown
    """What JSON and YAML hold of one."""


def emit(output: Output, view: View[R], records: Sequence[R], *, nothing: str) -> None:
    """Prints a list of records; where it is empty, a table is the message `nothing` on stderr."""
    write = sys.stdout.write
    if output == "json":
        write(json_text([view.record(record) for record in records]))
    elif output == "jsonl":
        for record in records:
            write(json_line(view.record(record)))
    elif output == "yaml":
        write(yaml_text([view.record(record) for record in records]))
    elif output == "name":
        for record in records:
            write(f"{one_line(view.name(record))}\n")
    elif records:
        print_table(sys.stdout, view.columns, records)
    else:
        say(nothing)


def emit_document(output: Output, document: Any, *, name: str, text: Callable[[], str]) -> None:
    """Prints one thing; `text` draws it for people, and is called only then.

    Its styles are stripped off a terminal.
    """
    write = sys.stdout.write
    if output == "json":
        write(json_text(document))
    elif output == "jsonl":
        write(json_line(document))
    elif output == "yaml":
        write(yaml_text(document))
    elif output == "name":
        write(f"{one_line(name)}\n")
    else:
        click.echo(text(), nl=False)
