"""Interventions as text: what one does, in a line and its facts, and several in a table."""

from __future__ import annotations

from modscope_client.cli.details import facts_text
from modscope_client.cli.messages import styled
from modscope_client.cli.render import View
from modscope_client.cli.table import Column
from modscope_client.cli.text import age, one_line, path_text, plural
from modscope_client.types import Intervention

__all__ = ["INTERVENTIONS", "intervention_text"]

_ALARM = "bold red"


def _state_style(made: Intervention) -> str:
    return {"acting": "green", "not acting": _ALARM}.get(made.state, "dim")


INTERVENTIONS: View[Intervention] = View(
    columns=(
        Column("ID", lambda i: one_line(i.id), style="bold"),
        Column("PATH", lambda i: path_text(i.path), flexible=True),
        Column("HOOK", lambda i: i.hook, style="cyan"),
        Column("ACTION", lambda i: one_line(_action(i))),
        Column("APPLIED", lambda i: f"{i.applied:,}", right=True),
        Column("STATE", lambda i: i.state, style=_state_style),
        Column("NOTE", lambda i: one_line(i.note), style="dim", optional=True, flexible=True, secondary=2),
    ),
    name=lambda i: i.id,
)


def intervention_text(made: Intervention) -> str:
    """An intervention that was made, for people."""
    what = "input" if made.hook == "forward_pre" else "output"
    where = path_text(made.path) if len(made.paths) == 1 else plural(len(made.paths), "module")
    heading = f"{styled(one_line(made.id), bold=True)}  {one_line(_action(made))} at the {what} of {where}"
    facts = (
        ("from", f"step {made.step if made.start is None else made.start:,}"),
        ("until", _end(made)),
        ("state", f"{made.state}: {one_line(made.note)}" if made.note else made.state),
    )
    return facts_text(heading, facts)


def _action(made: Intervention) -> str:
    """What it does, and to which part."""
    key = "" if made.key is None else f" key {made.key}"
    return f"{made.action}{key}{f' at {made.index}' if made.index else ''}"


def _end(made: Intervention) -> str:
    ends = [
        "" if made.calls is None else f"{plural(made.calls, 'call')} of each module",
        "" if made.stop is None else f"step {made.stop:,}",
        "" if made.lease is None else f"{age(made.lease.seconds)} are over",
        f"'modscope unhook {one_line(made.id)}'",
    ]
    return " or ".join(filter(None, ends))
