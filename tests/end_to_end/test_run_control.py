"""Runs under control as people have them: loops of every kind, workers, a progress bar, clients that die."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

from modscope_client import connect
from modscope_client.errors import ModscopeError
from tests.end_to_end.jobs import job
from tests.end_to_end.loops import KINDS, Loop
from tests.end_to_end.serving import TIMEOUT, until

ITERATIONS = 24
PAUSED_AT = 8


class Trained:
    """A loop of one kind after so many iterations, perhaps with somebody who interferes."""

    def __init__(self, kind: str, interfere: Callable[[Any, Loop], None] | None = None) -> None:
        torch.manual_seed(0)
        loop = KINDS[kind]()
        errors: list[BaseException] = []

        def train() -> None:
            try:
                for _ in range(ITERATIONS):
                    loop()
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=train, daemon=True)
        with loop.attach() as scope, connect(scope.address, token=scope.token, timeout=TIMEOUT) as client:
            if interfere is None:
                thread.start()
            else:
                client.run.break_when(f"step == {PAUSED_AT}")
                thread.start()
                client.run.wait(TIMEOUT)
                interfere(client, loop)
                client.run.resume()
            thread.join(TIMEOUT)
            assert not thread.is_alive()
        if errors:
            raise errors[0]
        self.state = {
            f"{name}.{key}": value.clone()
            for name, model in loop.models.items()
            for key, value in model.state_dict().items()
        }


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_loop_is_held_serves_all_and_goes_on_bit_for_bit(kind: str) -> None:
    def interfere(client: Any, loop: Loop) -> None:
        run = client.run
        status = run.status()
        assert (status.state, status.step) == ("paused", PAUSED_AT)
        done = loop.done
        for name in loop.models:
            model = client.model(name)
            values = model.read([parameter.path for parameter in model.parameters()])
            assert all(values[path].size for path in values)
            assert model.state_dict()
            assert model.write("still", values["still"]).step == PAUSED_AT
            assert model.forward(values["first.weight"][:2, :4]) is not None
        assert run.step(4).step == PAUSED_AT + 4
        assert run.step(2).step == PAUSED_AT + 6
        with run.pause(lease=20) as pause:
            assert pause.status.step == PAUSED_AT + 6
            assert loop.done - done == (3 if kind == "adversaries" else 6)

    torch.set_num_threads(1)
    disturbed, plain = Trained(kind, interfere).state, Trained(kind).state
    assert disturbed.keys() == plain.keys()
    for key, value in plain.items():
        assert torch.equal(disturbed[key], value), key


def test_a_step_after_which_writes_are_not_safe_is_passed_by_one() -> None:
    """The critic's step, at which the generator's output waits for its backward."""

    def interfere(client: Any, loop: Loop) -> None:
        assert client.run.status().step == PAUSED_AT
        assert client.run.step(3).step == PAUSED_AT + 4

    Trained("adversaries", interfere)


def test_a_break_is_exact_however_long_it_waits() -> None:
    loop = KINDS["adversaries"]()
    with loop.attach() as scope, connect(scope.address, token=scope.token, timeout=TIMEOUT) as client:
        client.run.break_when("step == 400")

        def train() -> None:
            for _ in range(201):
                loop()

        thread = threading.Thread(target=train, daemon=True)
        thread.start()
        assert client.run.wait(TIMEOUT).step == 400
        client.run.resume()
        thread.join(TIMEOUT)


def test_a_pause_that_the_loop_asks_for_itself_ends_with_its_lease() -> None:
    """As in a notebook: what would renew the lease lives in the process that it holds."""
    torch.manual_seed(0)
    loop = KINDS["plain"]()
    with loop.attach() as scope, connect(scope.address, token=scope.token, timeout=TIMEOUT) as client:
        loop()
        status = client.run.pause(lease=1, wait=False).status
        assert any("itself" in note for note in status.notes)
        while "nobody renewed it" not in client.run.status().last_resume:
            loop()
        assert scope.step_count == loop.done


def test_edits_of_a_paused_run_take_effect_in_it() -> None:
    def interfere(client: Any, loop: Loop) -> None:
        model = client.model()
        gradient = model.read("first.weight", what="grad")
        used = loop.models["model"].first.weight.grad
        assert used is not None
        assert torch.equal(torch.from_numpy(gradient), used)
        frozen = model.read("first.weight")
        model.freeze("first.*")
        client.run.step(3)
        assert (model.read("first.weight") == frozen).all()
        model.unfreeze("first.*")
        model.write("still", fill=3.0)
        client.run.step(3)
        assert not (model.read("first.weight") == frozen).all()
        assert loop.models["model"].still.item() == 3.0
        loaded = {**model.state_dict(), "still": model.read("still") * 0}
        model.load_state_dict(loaded)
        assert loop.models["model"].still.item() == 0.0
        assert client.run.status().step == PAUSED_AT + 6

    Trained("plain", interfere)


PREAMBLE = """
import sys, threading
import torch
from torch import nn
import modscope_server
torch.set_num_threads(1)
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
scope = modscope_server.attach(model, optimizer, writable=True)
def step(x=torch.ones(2, 4)):
    optimizer.zero_grad()
    loss = model(x).square().mean()
    loss.backward()
    optimizer.step()
    return loss
"""


def script(body: str) -> tuple[str, str]:
    return "-c", PREAMBLE + textwrap.dedent(body)


HOLDER = """
import sys
from modscope_client import connect
client = connect(sys.argv[1], token=sys.argv[2])
client.run.pause(lease=2)
print(client.run.status().state, flush=True)
sys.stdin.read()
"""


def test_a_run_whose_client_was_killed_goes_on_after_its_lease() -> None:
    with job(*script("while True: step()")) as running, running.client() as client:
        server = running.server()
        with subprocess.Popen(
            [sys.executable, "-c", HOLDER, server["address"], server["token"]],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as holder:
            assert holder.stdout is not None
            assert holder.stdout.readline().strip() == "paused"
            held = client.run.status()
            renewed = held.pause.lease.expires
            until(lambda: client.run.status().pause.lease.expires > renewed, "the holder renews its lease")
            holder.kill()
            holder.wait(TIMEOUT)
        step = held.step
        until(lambda: client.run.status().state == "running", "the run goes on")
        until(lambda: client.run.status().step > step, "the run goes on")
        status = client.run.status()
        assert "nobody renewed it for 2 s" in status.last_resume
        assert held.pause.lease.id in status.last_resume
        assert running.process.poll() is None


LOADER = """
from torch.utils.data import DataLoader, TensorDataset
try:
    from tqdm import tqdm
except ImportError:
    class tqdm:
        def __init__(self, items): self.items = items
        def __iter__(self):
            for number, item in enumerate(self.items):
                sys.stderr.write(f"\\r{number}it"); sys.stderr.flush()
                yield item
data = TensorDataset(torch.randn(64, 4))
total = 0
for epoch in range(4):
    for (x,) in tqdm(DataLoader(data, batch_size=4, num_workers=2)):
        loss = step(x)
        scope.step(loss=loss)
        total += 1
print(total, scope.step_count)
sys.stdin.read()
"""


def test_control_works_under_workers_and_with_a_progress_bar() -> None:
    with job(*script("sys.stdin.readline()\n" + LOADER)) as running:
        with running.client() as client:
            client.run.break_when("step == 10 or step == 30")
            running.go_on()
            assert client.run.wait(TIMEOUT).step == 10
            assert client.run.step(13).step == 23
            client.run.resume()
            status = client.run.wait(TIMEOUT)
            assert (status.step, status.metrics[0].points[-1].step) == (30, 30)
            client.run.clear()
            with client.run.pause():
                assert client.model().read("0.weight").shape == (8, 4)
        code, out, err = running.end()
        assert (code, out.split()) == (0, ["64", "64"]), err
        assert "it" in err


def test_an_interrupt_by_hand_ends_a_paused_run() -> None:
    body = """
    try:
        while True: step()
    except KeyboardInterrupt:
        print("interrupted at", scope.step_count)
    """
    with job(*script(body)) as running, running.client() as client:
        client.run.pause(lease=600)
        held = client.run.status().step
        code, out, err = running.end(signal.SIGINT)
        assert (code, out.strip()) == (0, f"interrupted at {held}"), err


def test_a_thread_that_is_paused_does_not_keep_the_interpreter_from_its_end() -> None:
    body = """
    done = 0
    def train():
        global done
        while threading.main_thread().is_alive() or done < 3:
            step()
            done += not threading.main_thread().is_alive()
        print("trained on", flush=True)
    threading.Thread(target=train).start()
    sys.stdin.readline()
    """
    with job(*script(body)) as running:
        with running.client() as client:
            client.run.pause(lease=600)
            running.go_on()
            code, out, err = running.end()
        assert (code, out.strip()) == (0, "trained on"), err


def test_a_loop_without_optimizer_stops_on_what_it_reports() -> None:
    body = """
    sys.stdin.readline()
    for number in range(10_000):
        scope.step(loss=number / 10, **{"val/acc": 1 - number / 10})
    """
    with job(*script(body)) as running, running.client() as client:
        client.run.break_when("loss > 2 and val/acc < -1")
        running.go_on()
        status = client.run.wait(TIMEOUT)
        assert status.step == 22
        assert [metric.name for metric in status.metrics] == ["loss", "val/acc"]
        with pytest.raises(ModscopeError) as caught:
            client.run.break_when("loss >")
        assert caught.value.reason == "BAD_EXPRESSION"
