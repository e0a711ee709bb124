"""Snapshots against the real server: a run rewound repeats its losses bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from modscope_client.errors import FailedPrecondition, InvalidArgument, NotFound
from tests.client.both import CLIENTS, served_to, settle
from tests.end_to_end.serving import served

BOTH = pytest.mark.parametrize("kind", CLIENTS, ids=["sync", "aio"])


class Job:
    """A model with dropout and running statistics, an optimizer with moments, a scheduler."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: 0.9**step)

    def losses(self, steps: int) -> list[float]:
        found = []
        for step in range(steps):
            self.optimizer.zero_grad()
            batch = torch.arange(32.0).reshape(8, 4) / (step + 1)
            loss = self.model(batch).square().mean()
            loss.backward()
            self.optimizer.step()
            self.scheduler.step()
            found.append(loss.item())
        return found


@BOTH
@pytest.mark.parametrize("where", ["memory", "directory"])
def test_rewound_and_replayed(kind: Any, where: str, tmp_path: Path) -> None:
    job = Job()
    directory = str(tmp_path) if where == "directory" else None

    async def body(model: Any) -> None:
        job.losses(3)
        saved = await settle(model.save_snapshot("before", directory))
        assert (saved.name, saved.model, saved.step) == ("before", "model", 3)
        assert {"model", "optimizer", "scheduler"} <= set(saved.parts)
        assert bool(saved.directory) == (where == "directory")
        first = job.losses(10)
        assert await settle(model.snapshots()) == [saved]
        plan = await settle(model.restore_snapshot("before", dry_run=True))
        assert plan.outcome == "dry_run"
        restored = await settle(model.restore_snapshot("before", directory))
        assert (restored.kind, restored.outcome) == ("restore_snapshot", "applied")
        assert (await settle(model.info())).step == 3
        assert job.losses(10) == first and len(set(first)) == 10
        at_the_end = {key: tensor.clone() for key, tensor in job.model.state_dict().items()}
        third = await settle(model.restore_snapshot("before"))
        replayed = {key: tensor.clone() for key, tensor in job.model.state_dict().items()}
        await settle(model.undo(third.id))
        assert (await settle(model.info())).step == 13
        assert any(not torch.equal(t, replayed[key]) for key, t in job.model.state_dict().items())
        assert all(torch.equal(t, at_the_end[key]) for key, t in job.model.state_dict().items())
        assert await settle(model.drop_snapshot("before")) == saved
        assert await settle(model.snapshots(directory)) == []

    with served(job.model, job.optimizer, extras={"scheduler": job.scheduler}) as live:
        served_to(kind, live.scope, body)


@BOTH
def test_refusals(kind: Any) -> None:
    job = Job()

    async def body(model: Any) -> None:
        assert await settle(model.snapshots()) == []
        for attempt in (lambda: model.restore_snapshot("none"), lambda: model.drop_snapshot("none")):
            with pytest.raises(NotFound) as unknown:
                await settle(attempt())
            assert unknown.value.reason == "UNKNOWN_SNAPSHOT"
        for name in ("", "../up", "a b"):
            with pytest.raises(InvalidArgument):
                await settle(model.save_snapshot(name))
        await settle(model.save_snapshot("one"))
        with pytest.raises(FailedPrecondition) as taken:
            await settle(model.save_snapshot("one"))
        assert taken.value.reason == "SNAPSHOT_EXISTS" and "replace=True" in taken.value.hint
        job.losses(1)
        assert (await settle(model.save_snapshot("one", replace=True))).step == 1

    with served(job.model, job.optimizer) as live:
        served_to(kind, live.scope, body)
