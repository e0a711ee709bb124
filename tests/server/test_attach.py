"""attach: one line, arguments checked at once, nothing left behind, nothing imported before."""

from __future__ import annotations

import copy
import gc
import inspect
import os
import socket
import stat
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
import trustme
from torch import nn

import modscope_server
from modscope_server.discovery import runtime_directory
from modscope_server.errors import ConfigurationError
from modscope_server.fork import prepare_grpc
from tests.server.rpc import Rpc, refused


def hooks_of(model: nn.Module) -> list[int]:
    return [
        len(table)
        for module in model.modules()
        for table in (
            module._forward_pre_hooks,
            module._forward_hooks,
            module._backward_hooks,
            module._backward_pre_hooks,
        )
    ]


@pytest.fixture
def model() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


@pytest.fixture
def short() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ms-") as directory:
        yield Path(directory)


def test_the_import_brings_neither_grpc_nor_torch() -> None:
    code = (
        "import sys, modscope_server; print(sorted({'grpc', 'torch', 'numpy', 'google'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_public_names_are_an_explicit_list() -> None:
    assert set(modscope_server.__all__) == {
        "ConfigurationError", "DisabledScope", "Limits", "ModscopeServerError", "ModscopeWarning", "Scope",
        "ServerConfig", "TLS", "attach",
    }  # fmt: skip
    for name in modscope_server.__all__:
        assert getattr(modscope_server, name).__module__.startswith("modscope_server.")


def test_the_arguments_are_those_that_are_promised() -> None:
    parameters = inspect.signature(modscope_server.attach).parameters
    assert {name: parameter.default for name, parameter in parameters.items()} == {
        "model": inspect.Parameter.empty,
        "optimizer": None,
        "name": "model",
        "address": None,
        "writable": False,
        "tls": None,
        "token": None,
        "limits": None,
        "extras": None,
    }


def test_one_line_tells_address_and_token_file(model: nn.Module, capfd: pytest.CaptureFixture[str]) -> None:
    with modscope_server.attach(model) as scope:
        out, err = capfd.readouterr()
        assert out == ""
        (line,) = err.splitlines()
        assert scope.address in line
        (token_file,) = (word for word in line.split() if word.endswith("/token"))
        assert Path(token_file).read_text() == scope.token + "\n"
        assert scope.token not in line
        assert scope.viewer_token not in line


def test_a_socket_of_its_own_that_only_the_owner_may_use(model: nn.Module) -> None:
    with modscope_server.attach(model) as scope:
        path = Path(scope.address.removeprefix("unix:"))
        assert path.parent.parent == runtime_directory()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        with Rpc(scope.address, scope.viewer_token) as rpc:
            assert rpc.GetModel().model.type == "Sequential"


def test_tokens_are_drawn_anew_or_taken(model: nn.Module) -> None:
    with modscope_server.attach(model) as one, modscope_server.attach(model, token="mine") as other:
        assert other.token == "mine"
        assert len({one.token, one.viewer_token, other.viewer_token}) == 3
        assert min(map(len, (one.token, one.viewer_token, other.viewer_token))) >= 32


@pytest.mark.parametrize("address", ["localhost:0", "127.0.0.1:0"])
def test_tcp_tells_the_real_port(model: nn.Module, address: str) -> None:
    with modscope_server.attach(model, address=address) as scope:
        host, _, port = scope.address.rpartition(":")
        assert host == address.rpartition(":")[0]
        assert int(port) > 0
        with Rpc(scope.address, scope.token) as rpc:
            assert rpc.GetModel().model.name == "model"


def test_a_port_is_not_bound_twice(model: nn.Module) -> None:
    with modscope_server.attach(model, address="127.0.0.1:0") as scope:
        with pytest.raises(ConfigurationError, match="cannot be listened at") as raised:
            modscope_server.attach(model, address=scope.address)
        assert raised.value.hint == "give 127.0.0.1:0 for a free port"
        with Rpc(scope.address, scope.token) as rpc:
            assert rpc.GetModel().model.name == "model"


def test_the_socket_of_a_living_server_is_not_taken(model: nn.Module, short: Path) -> None:
    address = f"unix:{short}/a.sock"
    with modscope_server.attach(model, address=address) as scope:
        assert scope.address == address
        assert stat.S_IMODE((short / "a.sock").stat().st_mode) == 0o600
        with pytest.raises(ConfigurationError, match="is in use"):
            modscope_server.attach(model, address=address)
        with Rpc(scope.address, scope.token) as rpc:
            assert rpc.GetModel().model.name == "model"
    assert list(short.iterdir()) == []


def test_a_socket_that_a_stranger_serves_is_not_taken(model: nn.Module, short: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.bind(str(short / "a.sock"))
        stranger.listen()
        with pytest.raises(ConfigurationError, match="is in use"):
            modscope_server.attach(model, address=f"unix:{short}/a.sock")
    # It is gone now, and the file it left behind keeps nobody out.
    with (
        modscope_server.attach(model, address=f"unix:{short}/a.sock") as scope,
        Rpc(scope.address, scope.token) as rpc,
    ):
        assert rpc.GetModel().model.name == "model"


def test_a_socket_whose_listener_takes_nobody_in_is_not_taken(model: nn.Module, short: Path) -> None:
    path = str(short / "a.sock")
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.bind(path)
        stranger.listen(0)
        waiting = [socket.socket(socket.AF_UNIX) for _ in range(3)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(path)
        with pytest.raises(ConfigurationError, match="is in use"):
            modscope_server.attach(model, address=f"unix:{path}")
        for one in waiting:
            one.close()


def test_a_file_at_the_address_is_left_alone(model: nn.Module, short: Path) -> None:
    (short / "a.sock").write_text("precious")
    with pytest.raises(ConfigurationError, match="is in use"):
        modscope_server.attach(model, address=f"unix:{short}/a.sock")
    assert (short / "a.sock").read_text() == "precious"


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", "10.1.2.3:0", "gpu.example:0"])
def test_the_network_is_not_served_without_tls(model: nn.Module, address: str) -> None:
    with pytest.raises(ConfigurationError, match="in the clear") as raised:
        modscope_server.attach(model, address=address)
    assert raised.value.field == "tls"
    assert "ssh" in raised.value.hint


def pem(directory: Path) -> tuple[str, str, bytes]:
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    cert, key = directory / "cert.pem", directory / "key.pem"
    cert.write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
    certificate.private_key_pem.write_to_path(key)
    return str(cert), str(key), authority.cert_pem.bytes()


def test_tls_beyond_loopback(model: nn.Module, tmp_path: Path) -> None:
    cert, key, authority = pem(tmp_path)
    with modscope_server.attach(model, address="0.0.0.0:0", tls=(cert, key)) as scope:
        port = scope.address.rpartition(":")[2]
        channel = grpc.secure_channel(f"localhost:{port}", grpc.ssl_channel_credentials(authority))
        with Rpc(scope.address, scope.token, channel) as rpc:
            assert rpc.GetModel().model.name == "model"


def test_tls_that_asks_clients_for_certificates(model: nn.Module, tmp_path: Path) -> None:
    cert, key, authority = pem(tmp_path)
    (tmp_path / "ca.pem").write_bytes(authority)
    tls = modscope_server.TLS(cert=cert, key=key, client_ca=tmp_path / "ca.pem")
    with modscope_server.attach(model, address="localhost:0", tls=tls) as scope:
        strange = grpc.secure_channel(scope.address, grpc.ssl_channel_credentials(authority))
        with Rpc(scope.address, scope.token, strange) as rpc, pytest.raises(grpc.RpcError) as raised:
            rpc.GetModel(timeout=5)
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
        own = grpc.ssl_channel_credentials(authority, Path(key).read_bytes(), Path(cert).read_bytes())
        with Rpc(scope.address, scope.token, grpc.secure_channel(scope.address, own)) as rpc:
            assert rpc.GetModel().model.name == "model"


MODULE = nn.Linear(1, 1)
TAKEN = torch.optim.SGD(MODULE.parameters(), lr=0.1)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"model": "resnet"}, "model"),
        ({"model": {}}, "model"),
        ({"model": {"a": MODULE, "b": None}}, "model"),
        ({"model": {"": MODULE}}, "name"),
        ({"model": {3: MODULE}}, "name"),
        ({"model": MODULE, "name": ""}, "name"),
        ({"model": MODULE, "name": "a\nb"}, "name"),
        ({"model": MODULE, "optimizer": "adam"}, "optimizer"),
        ({"model": MODULE, "optimizer": [TAKEN, None]}, "optimizer"),
        ({"model": MODULE, "address": 50051}, "address"),
        ({"model": MODULE, "address": "50051"}, "address"),
        ({"model": MODULE, "address": "unix:relative"}, "address"),
        ({"model": MODULE, "address": "unix:/no/such/directory/a.sock"}, "address"),
        ({"model": MODULE, "tls": ("cert.pem",)}, "tls"),
        ({"model": MODULE, "tls": ("no-cert.pem", "no-key.pem")}, "tls.cert"),
        ({"model": MODULE, "tls": True}, "tls"),
        ({"model": MODULE, "token": ""}, "token"),
        ({"model": MODULE, "limits": {"streams": 1}}, "limits"),
        ({"model": MODULE, "extras": "scaler"}, "extras"),
    ],
)
def test_arguments_that_cannot_serve_are_refused_and_leave_nothing(
    arguments: dict[str, Any], field: str
) -> None:
    with pytest.raises(ConfigurationError) as raised:
        modscope_server.attach(**arguments)
    assert raised.value.field == field
    assert raised.value.hint
    assert hooks_of(MODULE) == [0, 0, 0, 0]
    assert list(runtime_directory().glob(f"{os.getpid()}-*")) == []


def test_tls_on_a_unix_socket_is_refused(model: nn.Module, tmp_path: Path) -> None:
    cert, key, _ = pem(tmp_path)
    with pytest.raises(ConfigurationError, match="plain HTTP/2"):
        modscope_server.attach(model, tls=(cert, key))
    with pytest.raises(ConfigurationError, match="cannot be listened at"):
        modscope_server.attach(model, address="localhost:0", tls=(key, key))


def test_several_models_by_name() -> None:
    models: dict[str, nn.Module] = {"generator": nn.Linear(1, 2), "critic": nn.Linear(2, 1)}
    with modscope_server.attach(models) as scope, Rpc(scope.address, scope.token) as rpc:
        assert [info.name for info in rpc.ListModels().models] == ["generator", "critic"]
        refusal = refused(lambda: rpc.GetModel())
        assert (refusal.code, refusal.reason) == ("NOT_FOUND", "UNKNOWN_MODEL")


def test_a_module_dict_is_a_module() -> None:
    with modscope_server.attach(nn.ModuleDict({"a": nn.Linear(1, 1)})) as scope:
        with Rpc(scope.address, scope.token) as rpc:
            assert [info.type for info in rpc.ListModels().models] == ["ModuleDict"]


def test_close_takes_everything_away_and_may_be_called_twice(model: nn.Module) -> None:
    bare = hooks_of(model)
    scope = modscope_server.attach(model)
    assert hooks_of(model) != bare
    directory = Path(scope.address.removeprefix("unix:")).parent
    assert directory.exists()
    scope.close()
    assert hooks_of(model) == bare
    assert not directory.exists()
    scope.close()
    scope.step(loss=1.0)
    assert scope.step_count == 0
    with Rpc(scope.address, scope.token) as rpc, pytest.raises(grpc.RpcError) as raised:
        rpc.GetModel(timeout=5)
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE


def test_steps_are_counted_and_remembered_after_the_end(model: nn.Module) -> None:
    scope = modscope_server.attach(model)
    for _ in range(3):
        scope.step(loss=torch.tensor(0.5), accuracy=0.9)
    assert scope.step_count == 3
    scope.close()
    assert scope.step_count == 3


def test_a_scope_that_nobody_keeps_goes_on_serving(model: nn.Module) -> None:
    address = modscope_server.attach(model, token="kept").address
    gc.collect()
    with Rpc(address, "kept") as rpc:
        assert rpc.GetModel().model.name == "model"
    for scope in list(modscope_server.scope._open):  # type: ignore[attr-defined]
        if scope.address == address:
            scope.close()


def test_an_attached_model_can_be_copied(model: nn.Module) -> None:
    with modscope_server.attach(model):
        twin = copy.deepcopy(model)
        assert torch.equal(twin(torch.ones(1, 3)), model(torch.ones(1, 3)))


@pytest.mark.parametrize("value", ["1", "true"])
def test_disabled_it_does_nothing(model: nn.Module, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODSCOPE_DISABLE", value)
    wrong: Any = "no module at all"
    for given in (model, wrong):
        with modscope_server.attach(given) as scope:
            assert isinstance(scope, modscope_server.Scope)
            assert (scope.address, scope.token, scope.viewer_token, scope.step_count) == ("", "", "", 0)
            scope.step(loss=1.0)
        scope.close()
    assert hooks_of(model) == hooks_of(nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1)))


def test_an_error_behind_a_scope_never_reaches_the_loop(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        address = token = viewer_token = ""
        step_count = 7

        def step(self, metrics: Mapping[str, Any]) -> None:
            raise RuntimeError("step")

        def close(self) -> None:
            raise RuntimeError("close")

        def abandon(self) -> None: ...

    scope = modscope_server.Scope(Broken())
    scope.step()
    scope.close()
    assert "scope.step failed; training goes on" in caplog.text
    assert "scope.close failed; training goes on" in caplog.text


def test_a_grpc_that_was_imported_before_without_the_setting_is_warned_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GRPC_ENABLE_FORK_SUPPORT", "1")
    with pytest.warns(modscope_server.ModscopeWarning, match="before the first import of grpc"):
        prepare_grpc()
    assert os.environ["GRPC_ENABLE_FORK_SUPPORT"] == "0"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepare_grpc()


def test_the_setting_is_made_before_grpc_is_imported() -> None:
    code = """
import os, warnings
os.environ.pop("GRPC_ENABLE_FORK_SUPPORT", None)
warnings.simplefilter("error")
import torch, modscope_server
with modscope_server.attach(torch.nn.Linear(1, 1)):
    from grpc._cython import cygrpc
    print(os.environ["GRPC_ENABLE_FORK_SUPPORT"], cygrpc.is_fork_support_enabled())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "0 False\n"
