"""What counts as idle: nothing inside of which a request could disturb the training thread."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from torch import nn

from modscope_server.runtime import activity
from modscope_server.runtime.safepoint import SafePoint

TIMEOUT = 60.0

waits: list[Callable[[], object]] = []


@torch.library.custom_op("modscope_tests::wait", mutates_args=())
def wait(x: torch.Tensor) -> torch.Tensor:
    """What a long kernel is like."""
    for act in waits:
        act()
    return x.clone()


@wait.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


def test_a_thread_inside_compiled_code_is_not_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activity, "IDLE_AFTER", 0.0)
    model = nn.Linear(2, 1)
    point = SafePoint([model])

    @torch.compile(backend=lambda graph, inputs: graph.forward)
    def forward(x: torch.Tensor) -> torch.Tensor:
        return model(wait(x))

    def train() -> None:
        point.mark_step()
        with torch.no_grad():
            forward(torch.ones(1, 2))
            inside.set()
            assert leave.wait(TIMEOUT)
            waits.append(meanwhile)
            forward(torch.ones(1, 2))
            waits.clear()

    def meanwhile() -> None:
        compiled.set()
        assert leave_compiled.wait(TIMEOUT)

    inside, leave, compiled, leave_compiled = (threading.Event() for _ in range(4))
    loop = threading.Thread(target=train)
    loop.start()
    assert inside.wait(TIMEOUT)
    assert point.idle
    leave.set()
    assert compiled.wait(TIMEOUT)
    assert not point.idle
    leave_compiled.set()
    loop.join(TIMEOUT)
    assert not loop.is_alive()
    point.close()
