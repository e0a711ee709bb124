"""The status of a run as text."""

from __future__ import annotations

import dataclasses

from modscope_client.cli.run_text import status_text
from modscope_client.types import Break, Lease, Metric, MetricPoint, Pause, RunStatus

RUNNING = RunStatus(
    step=1234,
    steps_per_second=2.5,
    state="running",
    doing="in forward of model",
    metrics=(),
    pause=None,
    breaks=(),
    waiting=0,
    skipped_steps=0,
    notes=(),
    last_resume="",
)
LEASE = Lease("lease-1", 600.0, 1000.0, "pause", "operator at unix")


def test_a_run_that_has_nothing_to_tell() -> None:
    assert status_text(RUNNING).splitlines() == [
        "\x1b[32mrunning\x1b[0m at step 1,234, 2.5 steps/s",
        "  \x1b[2mdoing\x1b[0m  in forward of model",
    ]


def plain(status: RunStatus) -> list[str]:
    from click import unstyle

    return unstyle(status_text(status, now=400.0)).splitlines()


def test_a_run_that_has_everything_to_tell() -> None:
    status = dataclasses.replace(
        RUNNING,
        state="paused",
        steps_per_second=0.0,
        metrics=(
            Metric("acc\n", (MetricPoint(1234, float("nan")),)),
            Metric("loss", (MetricPoint(1233, 0.5), MetricPoint(1234, 0.25))),
            Metric("nothing", ()),
        ),
        pause=Pause(LEASE, "loss < 1", "b-1", 341.0),
        breaks=(Break("b-1", "loss < 1", 1, (), 600.0), Break("b-2", "lr > 1", 0, ("lr is unknown",), 600.0)),
        waiting=2,
        skipped_steps=1,
        last_resume="the lease lease-0 ended",
    )
    assert plain(status) == [
        "paused at step 1,234",
        "  doing         in forward of model",
        "  paused        by break b-1: loss < 1, for 59s",
        "  lease         resumes in 10m unless renewed (lease-1, operator at unix)",
        "  waiting       2 requests",
        "  skipped       1 step",
        "  last resume   the lease lease-0 ended",
        "  metric acc\\n  nan at step 1,234",
        "  metric loss   0.5 at 1,233, 0.25 at step 1,234",
        "  break b-1     loss < 1 (1 hit)",
        "  break b-2     lr > 1; lr is unknown",
    ]


def test_a_pause_to_come_and_a_run_without_training() -> None:
    waiting = dataclasses.replace(RUNNING, state="no_training", pause=Pause(LEASE, "pause", "", None))
    assert plain(waiting)[0] == "no training at step 1,234, 2.5 steps/s"
    assert plain(waiting)[2] == "  paused  by pause, at the next step boundary"
