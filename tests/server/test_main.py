"""modscope-server: a factory's model is served until a signal ends it, and what cannot serve is told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from modscope_server.__main__ import main
from tests.server.rpc import Rpc

FACTORY = """
import torch
from torch import nn

class Factories:
    @staticmethod
    def pair():
        return {"a": nn.Linear(1, 1), "b": nn.ReLU()}

def build():
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    tied = nn.Sequential(model, nn.Linear(2, 3))
    return tied

def wrong():
    return "a model"

number = 7
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with a factory module; what an import of it brings in is forgotten again."""
    (tmp_path / "factory_for_test.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("factory_for_test", None)


@contextmanager
def started(folder: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """A server process, its address and its operator token."""
    command = [sys.executable, "-m", "modscope_server", *arguments]
    with subprocess.Popen(
        command, cwd=folder, stderr=subprocess.PIPE, text=True, env=dict(os.environ)
    ) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        words = line.split()
        try:
            assert line.startswith("modscope: serving"), line + process.stderr.read()
            yield process, words[words.index("at") + 1].rstrip(","), Path(words[-1]).read_text().strip()
        finally:
            if process.poll() is None:
                process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_a_signal_ends_it_cleanly(folder: Path, number: signal.Signals) -> None:
    with started(folder, "factory_for_test:build", "--name", "tied") as (process, address, token):
        with Rpc(address, token) as rpc:
            info = rpc.GetModel().model
            assert (info.name, info.type, info.writable) == ("tied", "Sequential", False)
            stream = rpc.Watch()
            assert next(stream).HasField("created")
            process.send_signal(number)
            assert process.wait(30) == 0
            assert list(stream)[-1].ended.reason == "server closed"
        assert process.stderr is not None
        assert process.stderr.read() == ""
    assert not Path(address.removeprefix("unix:")).parent.exists()


def test_weights_tokens_and_an_address_of_ones_own(folder: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 3))
    safetensors.torch.save_model(model, str(folder / "model.safetensors"))
    (folder / "secret").write_text("my-own-token\n")
    options = [
        "--weights",
        "model.safetensors",
        "--token-file",
        "secret",
        "--writable",
        "--address",
        "localhost:0",
    ]
    with started(folder, "factory_for_test:build", *options) as (process, address, token):
        assert token == "my-own-token"
        assert address.startswith("localhost:")
        with Rpc(address, token) as rpc:
            assert rpc.GetModel().model.writable
            message = rpc.ReadTensor(path="0.weight")
            assert message.data == model.get_parameter("0.weight").detach().numpy().tobytes()
            rpc.Freeze(glob="0")
        process.terminate()
        assert process.wait(30) == 0


def test_several_models_from_a_nested_factory(folder: Path) -> None:
    with (
        started(folder, "factory_for_test:Factories.pair") as (_, address, token),
        Rpc(address, token) as rpc,
    ):
        assert [info.name for info in rpc.ListModels().models] == ["a", "b"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["factory_for_test"], "names no factory"),
        (["no_such_module_here:build"], "there is no module 'no_such_module_here'"),
        (["factory_for_test:built"], "has no 'built'"),
        (["factory_for_test:number"], "is a int, not a function"),
        (["factory_for_test:wrong"], "is a str, not a torch.nn.Module"),
        (["factory_for_test:build", "--weights", "no.safetensors"], "no.safetensors cannot be loaded"),
        (["factory_for_test:build", "--weights", "factory_for_test.py"], "cannot be loaded"),
        (["factory_for_test:Factories.pair", "--weights", "x.safetensors"], "the factory returned several"),
        (["factory_for_test:build", "--address", "0.0.0.0:0"], "in the clear"),
        (["factory_for_test:build", "--tls-cert", "cert.pem"], "belong together"),
        (
            ["factory_for_test:build", "--tls-cert", "cert.pem", "--tls-key", "key.pem"],
            "there is no file 'cert.pem'",
        ),
        (["factory_for_test:build", "--token-file", "nothing"], "--token-file: nothing cannot be read"),
    ],
)
def test_what_cannot_serve_is_told_with_a_hint(
    folder: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], kept_signals: None
) -> None:
    assert main(arguments) == 1
    message, hint = capsys.readouterr().err.splitlines()
    assert message.startswith("modscope-server: ")
    assert said in message
    assert hint.startswith("hint: ")


@pytest.fixture
def kept_signals() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_an_error_inside_the_factorys_module_is_not_hidden(folder: Path) -> None:
    (folder / "broken_for_test.py").write_text("import no_such_module_either\n")
    with pytest.raises(ModuleNotFoundError, match="no_such_module_either"):
        main(["broken_for_test:build"])


def test_wrong_weights_name_what_does_not_fit(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    safetensors.torch.save_file({"0.weight": torch.ones(9, 9)}, str(folder / "other.safetensors"))
    assert main(["factory_for_test:build", "--weights", "other.safetensors"]) == 1
    assert "[9, 9]" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["a:b", "--unknown"], ["a:b", "c:d"]])
def test_wrong_usage_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(arguments)
    assert raised.value.code == 2
    assert "usage: modscope-server" in capsys.readouterr().err
