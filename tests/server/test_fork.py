"""Forked children: DataLoader workers live through open streams, and to a child the scope is inert."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from tests.server.rpc import Rpc
from tests.server.scripts import running


@contextmanager
def reader(stream: Any) -> Iterator[list[Any]]:
    """Read a stream on a thread until it ends; it has been armed when this is entered."""
    messages: list[Any] = []
    armed = threading.Event()

    def read() -> None:
        try:
            for message in stream:
                messages.append(message)
                armed.set()
        except grpc.RpcError:
            return

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    assert armed.wait(30)
    yield messages
    thread.join(30)
    assert not thread.is_alive()


def test_data_loader_workers_live_through_an_open_stream() -> None:
    body = """
    from torch.utils.data import DataLoader, TensorDataset

    model, optimizer, scope = serve()
    data = TensorDataset(torch.randn(32, 4))
    sys.stdin.readline()
    for epoch in range(25):
        loader = DataLoader(data, batch_size=8, num_workers=2, multiprocessing_context="fork", timeout=20)
        for (batch,) in loader:
            step(model, optimizer, batch)
    print("steps", scope.step_count, flush=True)
    """
    with running(body) as script, Rpc(script.address, script.token) as rpc:
        with reader(rpc.Watch(glob="*", queue=8192, timeout=120)) as messages:
            script.go_on()
            code, out, err = script.end()
    assert code == 0, err
    assert out == "steps 100\n"
    assert "Traceback" not in err
    events = [event for message in messages for event in message.events]
    assert {event.step for event in events} == set(range(100))


CHILDREN = """
import gc

model, optimizer, scope = serve()
sys.stdin.readline()

def status(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def in_child(act):
    pid = os.fork()
    if pid == 0:
        act()
        {leave}
    return status(pid)

def use():
    taps = [one for one in gc.get_objects() if type(one).__name__ == "ModuleTap"]
    assert taps and not any(tap.sinks for tap in taps)
    step(model, optimizer)
    assert all(tap.calls == 1 for tap in taps)
    scope.step(loss=1.0)
    scope.close()
    assert scope.step_count == 0 or scope.step_count == 1, scope.step_count

step(model, optimizer)
print([in_child(use) for _ in range(3)], scope.step_count, flush=True)
sys.stdin.readline()
"""


def ended_children(leave: str) -> tuple[str, list[Any]]:
    """What the script says of its children, and the paths that a watch has seen in the parent."""
    with running(CHILDREN.format(leave=leave), warnings="default") as script:
        with Rpc(script.address, script.token) as rpc:
            with reader(rpc.Watch(glob="0")) as messages:
                script.go_on()
                line = script.line()
                # The parent still serves, and its files and socket are still there.
                assert rpc.GetModel().model.step == 1
                with Rpc(script.address, script.token) as other:
                    assert other.GetModel().model.step == 1
                script.go_on()
                code, _, err = script.end()
                assert code == 0, err
    return line, [event.path for message in messages for event in message.events]


def test_a_child_that_exits_as_multiprocessing_does() -> None:
    line, paths = ended_children("os._exit(0)")
    assert line == f"{[0] * 3} 1"
    assert paths == ["0"]


def test_a_child_that_ends_as_a_script_does() -> None:
    line, paths = ended_children("sys.exit(0)")
    assert line == f"{[0] * 3} 1"
    assert paths == ["0"]


def test_a_child_may_attach_for_itself() -> None:
    body = """
    model, optimizer, scope = serve()
    pid = os.fork()
    if pid == 0:
        own = modscope_server.attach(nn.Linear(1, 1))
        print(own.address != scope.address and own.token != scope.token, flush=True)
        own.close()
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
    """
    with running(body, warnings="default") as script:
        code, out, err = script.end()
    assert (code, out) == (0, "True\n0\n"), err
