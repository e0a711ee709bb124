"""Closing the safe point beside a loop: a request that runs gives its answer, one that waits never runs."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from modscope_server.errors import Closed
from modscope_server.runtime.safepoint import SafePoint
from tests.server.rpc import TIMEOUT, training_loop, until
from tests.server.safepoint_support import small_model, train


class Looks:
    """A caller that stays, and counts how often somebody looks whether it does."""

    count = 0

    def is_set(self) -> bool:
        self.count += 1
        return False


def test_what_the_loop_serves_as_it_closes_is_answered_and_what_waits_is_refused() -> None:
    model = small_model()
    point = SafePoint([model], optimizers=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    inside, leave = threading.Event(), threading.Event()
    looks = Looks()
    ran: list[str] = []

    def serve() -> str:
        inside.set()
        assert leave.wait(TIMEOUT)
        return "served"

    with ThreadPoolExecutor(3) as threads, training_loop(lambda: train(model, optimizer)):
        until(lambda: point.step_count > 0)
        served = threads.submit(point.run, serve, cancelled=looks)
        assert inside.wait(TIMEOUT)
        waits = threads.submit(point.run, lambda: ran.append("after"))
        until(lambda: point.waiting == 1)
        closed = threads.submit(point.close)
        with pytest.raises(Closed) as caught:
            waits.result(TIMEOUT)
        assert caught.value.hint
        seen = looks.count
        until(lambda: served.done() or looks.count > seen + 1)
        assert not served.done()
        leave.set()
        assert served.result(TIMEOUT).value == "served"
        closed.result(TIMEOUT)
    assert not ran
