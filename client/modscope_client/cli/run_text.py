"""What the training run does, as text: one line, then its facts, metrics and breaks."""

from __future__ import annotations

import time

from modscope_client.cli.details import facts_text
from modscope_client.cli.messages import note, styled
from modscope_client.cli.render import View, emit_document
from modscope_client.cli.settings import Output
from modscope_client.cli.table import Column
from modscope_client.cli.text import age, number, one_line, plural
from modscope_client.errors import FailedPrecondition
from modscope_client.types import Break, Metric, Pause, RunStatus

__all__ = ["BREAKS", "break_text", "emit_paused", "emit_status", "status_text"]

BREAKS: View[Break] = View(
    columns=(
        Column("ID", lambda b: one_line(b.id), style="bold"),
        Column("CONDITION", lambda b: one_line(b.expression), style="cyan", flexible=True),
        Column("HITS", lambda b: f"{b.hits:,}", right=True),
        Column("LEASE", lambda b: age(b.lease_seconds), right=True, style="dim"),
        Column("NOTE", lambda b: "; ".join(map(one_line, b.notes)), style="dim", optional=True),
    ),
    name=lambda b: b.id,
)


def emit_status(output: Output, status: RunStatus) -> None:
    """Prints a status, then its notes; `-o name` prints the state alone."""
    emit_document(output, status, name=status.state, text=lambda: status_text(status))
    for text in status.notes:
        note(text)


def emit_paused(output: Output, status: RunStatus) -> None:
    """Prints the status of a run that was waited for. Raises FailedPrecondition where it never paused."""
    emit_status(output, status)
    if status.state != "paused":
        raise FailedPrecondition(
            f"the training ended at step {status.step:,}, before it was paused",
            reason="NO_TRAINING",
            hint="a pause is possible while a training loop runs",
        )


def status_text(status: RunStatus, now: float | None = None) -> str:
    """The status for people; `now` in Unix seconds, for what is told as an age."""
    now = time.time() if now is None else now
    rate = f", {number(status.steps_per_second)} steps/s" if status.steps_per_second else ""
    heading = f"{_state(status)} at step {status.step:,}{rate}"
    facts = [
        ("doing", one_line(status.doing)),
        *_pause_facts(status.pause, now),
        ("waiting", plural(status.waiting, "request") if status.waiting else ""),
        ("skipped", plural(status.skipped_steps, "step") if status.skipped_steps else ""),
        ("last resume", one_line(status.last_resume)),
        *((f"metric {one_line(metric.name)}", _points(metric)) for metric in status.metrics),
        *((f"break {one_line(found.id)}", _break(found)) for found in status.breaks),
    ]
    return facts_text(heading, facts)


def break_text(found: Break) -> str:
    """A break that has been set, for people."""
    return f"{styled(one_line(found.id), bold=True)} pauses the run when {one_line(found.expression)}\n"


def _state(status: RunStatus) -> str:
    colour = {"running": "green", "paused": "yellow"}.get(status.state)
    text = status.state.replace("_", " ") or "unknown"
    return styled(text, fg=colour) if colour else text


def _pause_facts(pause: Pause | None, now: float) -> list[tuple[str, str]]:
    if pause is None:
        return []
    why = one_line(pause.reason)
    reason = f"by break {one_line(pause.break_id)}: {why}" if pause.break_id else f"by {why}"
    when = ", at the next step boundary" if pause.since is None else f", for {age(now - pause.since)}"
    lease = pause.lease
    left = f"resumes in {age(lease.expires - now)} unless renewed"
    return [("paused", f"{reason}{when}"), ("lease", f"{left} ({one_line(lease.id)}, {one_line(lease.who)})")]


def _points(metric: Metric) -> str:
    if not metric.points:
        return ""
    *before, last = metric.points
    history = [f"{number(point.value, 6)} at {point.step:,}" for point in before]
    return ", ".join([*history, f"{number(last.value, 6)} at step {last.step:,}"])


def _break(found: Break) -> str:
    hits = f" ({plural(found.hits, 'hit')})" if found.hits else ""
    notes = f"; {'; '.join(map(one_line, found.notes))}" if found.notes else ""
    return f"{one_line(found.expression)}{hits}{notes}"
