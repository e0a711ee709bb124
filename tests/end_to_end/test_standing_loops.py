"""Loops that stand: in a debugger, at their end, after an error; callers that go before they are served."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path
from textwrap import dedent

import pytest
import torch
from torch import nn

from modscope_client import connect
from modscope_client.errors import DeadlineExceeded
from tests.end_to_end.serving import TIMEOUT, bits, running_loop, served, until

DEBUGGED = dedent(
    """
    import torch, modscope_server
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scope = modscope_server.attach(model, optimizer=optimizer, writable=True, address=ADDRESS, token="t")
    for number in range(4):
        optimizer.zero_grad()
        model(torch.ones(3, 2)).sum().backward()
        optimizer.step()
        if number == 1:
            breakpoint()
    print("weight", model.weight[0, 0].item())
    """
)


def test_a_loop_in_a_debugger_is_served(tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/s"
    script = tmp_path / "job.py"
    script.write_text(DEBUGGED.replace("ADDRESS", repr(address)))
    job = subprocess.Popen(
        [sys.executable, str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert job.stdout is not None
    for line in job.stdout:
        if line.startswith("-> "):
            break
    with connect(address, token="t", timeout=TIMEOUT) as client:
        model = client.model()
        _, step = model.read("weight", with_step=True)
        assert step == 2
        assert model.write("weight", fill=100.0).step == 2
        assert (model.read("weight") == 100.0).all()
    out, err = job.communicate("continue\n", timeout=TIMEOUT)
    assert job.returncode == 0, err
    weight = float(out.rpartition("weight")[2])
    assert weight == pytest.approx(100.0 - 2 * 0.1 * 3)


class Fails(RuntimeError):
    """What the loop below raises."""


def test_a_loop_that_raised_is_served() -> None:
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    raised = threading.Event()
    leave = threading.Event()

    def iterate() -> None:
        optimizer.zero_grad()
        loss = model(torch.ones(3, 2)).sum()
        loss.backward()
        optimizer.step()
        try:
            model(torch.ones(3, 5))
        except RuntimeError:
            raised.set()
            leave.wait(TIMEOUT)

    with served(model, optimizer) as live, running_loop(iterate):
        assert raised.wait(TIMEOUT)
        try:
            assert live.model.write("weight", fill=3.0).outcome == "applied"
            assert (live.model.read("weight") == 3.0).all()
            assert bits(live.model.read("weight", what="grad")) == bits(model.weight.grad)
        finally:
            leave.set()


HASTY = dedent(
    """
    import sys
    from modscope_client import connect
    with connect(sys.argv[1], token=sys.argv[2], timeout=60) as client:
        model = client.model()
        print("asking", flush=True)
        model.write("weight", fill=7.0)
    """
)


def test_a_killed_client_withdraws_its_write() -> None:
    """It waits between a forward and its backward; when the loop goes on, nobody has asked any more."""
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    forwarded, go_on = threading.Event(), threading.Event()
    stop_here = threading.Event()

    def iterate() -> None:
        optimizer.zero_grad()
        loss = model(torch.ones(3, 2)).sum()
        if stop_here.is_set():
            forwarded.set()
            while not go_on.wait(0.005):
                pass
        loss.backward()
        optimizer.step()

    with served(model, optimizer) as live, running_loop(iterate):
        until(lambda: live.scope.step_count > 3, "steps")
        live.model.read("weight")
        stop_here.set()
        assert forwarded.wait(TIMEOUT)
        with pytest.raises(DeadlineExceeded, match="between a forward and its backward"):
            connect_and_write(live.scope.address, live.scope.token)
        client = subprocess.Popen(
            [sys.executable, "-c", HASTY, live.scope.address, live.scope.token],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert client.stdout is not None
        assert client.stdout.readline() == "asking\n"
        until(lambda: live.client.run.status().waiting > 0, "the write waits")
        client.send_signal(signal.SIGKILL)
        client.communicate(timeout=TIMEOUT)
        until(lambda: live.client.run.status().waiting == 0, "it is withdrawn")
        go_on.set()
        before = live.scope.step_count
        until(lambda: live.scope.step_count > before + 3, "the loop goes on")
        assert not (live.model.read("weight") == 7.0).any()
        assert [one.outcome for one in live.model.operations()] == []


def connect_and_write(address: str, token: str) -> None:
    with connect(address, token=token, timeout=1.0) as hasty:
        hasty.model().write("weight", fill=5.0)
