"""The process ends when training does: at its end, by an error, with streams open, and cleanly."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.server.rpc import Rpc
from tests.server.scripts import SECONDS, Script, running
from tests.server.test_fork import reader


def gone(script: Script) -> bool:
    return not Path(script.address.removeprefix("unix:")).parent.exists()


ENDINGS = {
    "at its end": ("", 0, ""),
    "by an error": ("raise ValueError('loss is nan')", 1, "ValueError: loss is nan"),
    "by an interrupt": ("raise KeyboardInterrupt", -signal.SIGINT, "KeyboardInterrupt"),
    # From Python 3.12 no thread can be started while the interpreter exits.
    "without new threads": (
        "def refuse(self): raise RuntimeError('no new thread at exit')\n    threading.Thread.start = refuse",
        0,
        "",
    ),
    "closed by hand": ("scope.close(); scope.close()", 0, ""),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_it_ends_with_streams_open(ending: str) -> None:
    line, expected, said = ENDINGS[ending]
    body = f"""
    model, optimizer, scope = serve()
    step(model, optimizer)
    sys.stdin.readline()
    for _ in range(3):
        step(model, optimizer)
    {line}
    """
    with running(body) as script, Rpc(script.address, script.token) as rpc:
        with reader(rpc.Watch()) as first, reader(rpc.Watch(glob="0")) as second:
            script.go_on()
            code, _, err = script.end()
    assert code == expected
    lines = err.splitlines()
    assert lines[0].startswith("modscope: serving model")
    assert lines[-1].startswith(said) if said else len(lines) == 1, err
    assert "Fatal" not in err
    assert gone(script)
    for messages in (first, second):
        steps = {event.step for message in messages for event in message.events}
        assert steps - {0} == {1, 2, 3}, "a watch that is armed early enough sees the first step too"
        assert messages[-1].ended.reason == "server closed"


def test_it_ends_with_calls_that_wait_for_a_step() -> None:
    body = """
    model, optimizer, scope = serve()
    step(model, optimizer)
    loss = model(torch.ones(2, 4)).sum()  # awaits its backward, so no write is served
    sys.stdin.readline()
    for _ in range(3):
        model.eval()(torch.ones(2, 4))
    """
    with running(body) as script, Rpc(script.address, script.token) as rpc:
        outcome: list[Any] = []

        def freeze() -> None:
            try:
                outcome.append(rpc.Freeze(glob="0.weight"))
            except grpc.RpcError as error:
                outcome.append(error.code())

        threads = [threading.Thread(target=freeze) for _ in range(4)]
        for thread in threads:
            thread.start()
        script.go_on()
        code, _, err = script.end()
        for thread in threads:
            thread.join(SECONDS)
            assert not thread.is_alive()
    assert code == 0, err
    assert len(outcome) == 4


def test_it_ends_while_a_reader_takes_nothing() -> None:
    body = """
    model, optimizer, scope = serve()
    big = nn.Linear(4096, 4096)
    other = modscope_server.attach(big)
    print(other.address, other.token, flush=True)
    sys.stdin.readline()
    """
    with running(body) as script:
        address, token = script.line().split()
        with Rpc(address, token) as rpc:
            stream = rpc.Download()
            next(stream)
            script.go_on()
            code, _, err = script.end()
    assert code == 0, err


def test_a_killed_process_leaves_what_the_next_server_clears_away() -> None:
    with running("serve(); sys.stdin.readline()") as script:
        script.process.send_signal(signal.SIGKILL)
        script.process.wait(SECONDS)
        assert not gone(script)
    with running("serve(); sys.stdin.readline()") as other:
        assert gone(script)
        other.go_on()
        assert other.end()[0] == 0
    assert gone(other)
