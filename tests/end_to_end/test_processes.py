"""A training job as another process: workers that fork, signals, sudden death, TLS."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import trustme
from safetensors.torch import save_file
from torch import nn

import modscope_server
from modscope_client import connect
from modscope_client.errors import ModscopeError, Unauthenticated, Unavailable
from modscope_client.subscription import Subscription
from modscope_client.types import Event
from tests.end_to_end.jobs import EXAMPLES, job
from tests.end_to_end.serving import TIMEOUT, bits

PLAIN_LOOP = str(EXAMPLES / "plain_loop.py")
FOREVER = ("--steps", str(10**9))


def followed(
    events: Subscription, react: Callable[[Event], Any] = lambda event: None
) -> ModscopeError | None:
    """Follows a watch until it ends; gives the error with which it did, None where the server ended it."""
    try:
        for event in events:
            react(event)
    except ModscopeError as error:
        return error
    return None


def test_data_loader_workers_fork_beside_an_open_stream() -> None:
    with (
        job(str(EXAMPLES / "digits.py"), "--epochs", "6", "--workers", "2") as running,
        running.client() as client,
    ):
        model, steps = client.model(), []
        with model.watch("*", type="Linear", every=5) as events:
            error = followed(events, lambda event: steps.append(event.step))
        assert error is None or isinstance(error, Unavailable)
        assert steps[-1] > steps[0]
        code, out, err = running.end()
        assert code == 0, err
        assert "epoch 6" in out
        assert "Traceback" not in err


def test_sudden_death_is_unavailable() -> None:
    with job(PLAIN_LOOP, *FOREVER) as running, running.client() as client:
        model, server = client.model(), running.server()
        with model.watch("layer") as events:
            next(iter(events))
            assert running.end(signal.SIGKILL)[0] == -signal.SIGKILL
            error = followed(events)
        assert isinstance(error, Unavailable)
        assert error.reason == "UNREACHABLE"
        with pytest.raises(Unavailable):
            model.read("layer.weight")
        with connect(server["address"], token=server["token"], timeout=5) as late, pytest.raises(Unavailable):
            late.models()


def test_an_interrupt_ends_the_job_with_streams_open() -> None:
    with job(PLAIN_LOOP, *FOREVER) as running, running.client() as client:
        with client.model().watch("layer", every=1000) as events:
            next(iter(events))
            code, _, err = running.end(signal.SIGINT)
            assert code == -signal.SIGINT
            assert err.rstrip().endswith("KeyboardInterrupt")
            error = followed(events)
        assert error is None or isinstance(error, Unavailable)
        assert list(running.runtime.glob("*/server.json")) == [], "it took its server.json along"


RAISING = """
import torch, modscope_server
model = torch.nn.Linear(2, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
modscope_server.attach(model, optimizer=optimizer, writable=True)
while model.bias.item() < 1000:
    optimizer.zero_grad()
    model(torch.randn(4, 2)).square().sum().backward()
    optimizer.step()
raise RuntimeError("the bias went off")
"""


def test_an_exception_in_the_loop_ends_the_job_with_streams_open() -> None:
    with job("-c", RAISING) as running, running.client() as client:
        model = client.model()
        with model.watch("", every=1000) as events:
            model.write("bias", fill=1e6)
            code, _, err = running.end()
            assert code == 1
            assert err.rstrip().endswith("RuntimeError: the bias went off")
            error = followed(events)
        assert error is None or isinstance(error, Unavailable)


def test_a_job_that_handles_the_signal_exits_0() -> None:
    with job(str(EXAMPLES / "digits.py")) as running, running.client() as client:
        with client.model().watch("head", every=10) as events:
            next(iter(events))
            code, out, err = running.end(signal.SIGTERM)
        assert code == 0, err
        assert out.startswith("epoch 1 ")


def test_tls(tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    cert, key, ca = tmp_path / "cert.pem", tmp_path / "key.pem", tmp_path / "ca.pem"
    certificate.cert_chain_pems[0].write_to_path(cert)
    certificate.private_key_pem.write_to_path(key)
    authority.cert_pem.write_to_path(ca)
    module = nn.Linear(300, 1000)
    with modscope_server.attach(
        module, address="localhost:0", tls=modscope_server.TLS(cert=cert, key=key), writable=True
    ) as scope:
        with connect(scope.address, token=scope.token, tls=str(ca), timeout=TIMEOUT) as client:
            assert bits(client.model().read("weight")) == bits(module.weight)
            client.model().write("bias", fill=0.5)
            assert torch.equal(module.bias, torch.full((1000,), 0.5))
        with (
            connect(scope.address, token="wrong", tls=str(ca), timeout=TIMEOUT) as client,
            pytest.raises(Unauthenticated),
        ):
            client.models()
        stranger = tmp_path / "stranger.pem"
        trustme.CA().cert_pem.write_to_path(stranger)
        for tls in (str(stranger), False):
            with (
                connect(scope.address, token=scope.token, tls=tls, timeout=5) as client,
                pytest.raises(Unavailable),
            ):
                client.models()


def test_a_server_of_no_loop(tmp_path: Path) -> None:
    layer = nn.Linear(3, 2)
    save_file(layer.state_dict(), tmp_path / "weights.safetensors")
    (tmp_path / "factory.py").write_text("from torch import nn\ndef build():\n    return nn.Linear(3, 2)\n")
    weights = ("--weights", str(tmp_path / "weights.safetensors"))
    with job("-m", "modscope_server", "factory:build", *weights, "--writable", folder=tmp_path) as running:
        with running.client() as client:
            model = client.model()
            assert bits(model.read("weight")) == bits(layer.weight)
            x = torch.randn(4, 3)
            assert bits(model.forward(x.numpy())) == bits(layer(x))
            model.write("bias", fill=2.0)
            assert (model.read("bias") == 2.0).all()
        code, _, err = running.end(signal.SIGTERM)
        assert code in (0, -signal.SIGTERM, 128 + signal.SIGTERM), err
        assert "Traceback" not in err
        assert list(running.runtime.glob("*/server.json")) == []
