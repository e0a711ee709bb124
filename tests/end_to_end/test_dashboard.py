"""One subscription carries all that a dashboard shows: activations, gradients, parameters and metrics."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from modscope_client import connect
from modscope_client.errors import NotFound
from modscope_client.feed import Feed
from modscope_client.sinks import make_sink
from tests.end_to_end.serving import Served, bits, served

HOOKS = ("forward", "gradient", "parameter", "metric")


class Job:
    """A model that trains, and what PyTorch's own hooks have seen of it, by step, kind and path."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1)
        self.seen: dict[tuple[int, str, str], torch.Tensor] = {}
        self._step = 0
        self.optimizer.register_step_post_hook(self._stepped)
        for path, module in self.model.named_modules():
            module.register_forward_hook(
                lambda m, args, output, path=path: self._note(self._step, "forward", path, output)
            )

    def train(self, live: Served, steps: int) -> None:
        """Iterations with a loss that is reported."""
        for _ in range(steps):
            self.optimizer.zero_grad()
            loss = self.model(torch.randn(16, 4)).square().mean()
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 0.1)
            self.optimizer.step()
            self._note(self._step, "metric", "loss", loss.double())
            live.scope.step(loss=loss)

    def _stepped(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        self._step += 1
        for path, parameter in self.model.named_parameters():
            self._note(self._step, "parameter", path, parameter)
            assert parameter.grad is not None
            self._note(self._step, "gradient", path, parameter.grad)

    def _note(self, step: int, kind: str, path: str, tensor: torch.Tensor) -> None:
        self.seen[step, kind, path] = tensor.detach().clone()


def test_one_subscription_carries_all_bit_for_bit() -> None:
    job = Job()
    with served(job.model, job.optimizer) as live:
        with live.model.watch(hooks=HOOKS, payload="tensor") as events:
            job.train(live, 3)
            taken = [next(events) for _ in job.seen]
            hooks = {(hook.kind, hook.path): hook for hook in live.model.hooks() if hook.owner == "watch"}
        assert not [hook for hook in live.model.hooks() if hook.owner == "watch"]
    got = {(event.step, event.hook, event.path): event for event in taken}
    assert got.keys() == job.seen.keys()
    for key, event in got.items():
        (value,) = event.values
        assert bits(value.array) == bits(job.seen[key]), key
        roles = {"forward": "output"}
        assert (value.role, value.key) == (roles.get(event.hook, event.hook), "")
    assert got[1, "gradient", "2.weight"].type == "Linear"
    assert got[1, "metric", "loss"].type == ""
    assert sorted(event.seq for event in taken) == list(range(len(taken)))
    for kind, path in (("gradient", "0.bias"), ("parameter", "2.weight"), ("metric", "")):
        hook = hooks[kind, path]
        assert (hook.fired, hook.last_step, hook.state, hook.reason) == (3, 3, "fired", "")


def test_metrics_alone_need_no_module() -> None:
    job = Job()
    with served(job.model, job.optimizer) as live:
        with live.model.watch("no.such", hooks=("metric",)) as events:
            assert events.paths == ()
            job.train(live, 2)
            told = [next(events) for _ in range(2)]
        with (
            pytest.raises(NotFound, match=r"no module of 'model' matches 'no\.such'"),
            live.model.watch("no.such", hooks=("metric", "gradient")),
        ):
            pass
    losses = [job.seen[step, "metric", "loss"].item() for step in (1, 2)]
    stats = [event.values[0].stats for event in told]
    assert [(one.count, one.mean, one.min, one.max) for one in stats if one] == [
        (1, loss, loss, loss) for loss in losses
    ]


def test_tensorboard_shows_what_the_optimizer_has_used_and_each_loss_once(tmp_path: Path) -> None:
    job = Job()
    with served(job.model, job.optimizer) as live:
        job.train(live, 2)
        armed = threading.Event()
        feed = Feed(
            lambda: connect(live.scope.address, token=live.scope.token),
            make_sink("tensorboard", str(tmp_path)),
            watch={"glob": "2", "hooks": HOOKS, "payload": "stats"},
            armed=lambda events: armed.set(),
        )
        fed = threading.Thread(target=feed.run, args=(3 * 6,))
        fed.start()
        assert armed.wait(30)
        job.train(live, 3)
        fed.join(30)
        assert not fed.is_alive()
    found = EventAccumulator(str(tmp_path)).Reload()
    for kind in ("gradient", "parameter"):
        points = found.Scalars(f"{kind}/2.weight/norm")
        assert [point.step for point in points] == [3, 4, 5]
        norms = [job.seen[step, kind, "2.weight"].norm().item() for step in (3, 4, 5)]
        assert [point.value for point in points] == pytest.approx(norms)
    losses = found.Scalars("reported/loss")
    assert [point.step for point in losses] == [1, 2, 3, 4, 5], "with what the server has kept from before"
    assert [point.value for point in losses] == pytest.approx(
        [job.seen[step, "metric", "loss"].item() for step in range(1, 6)]
    )
