"""Bad input, through client and CLI: status, reason, hint and exit code; the model unchanged bit for bit."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import nn

import modscope_server
from modscope_client import connect
from modscope_client.errors import (
    DeadlineExceeded,
    ModscopeError,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
)
from tests.end_to_end.bad_calls import MUTATIONS, ROWS, Row, Small
from tests.end_to_end.serving import TIMEOUT, Served, cli, fingerprint, served


@pytest.fixture(scope="module")
def live() -> Iterator[Served]:
    module = Small()
    with served(module, torch.optim.SGD(module.parameters(), lr=0.1)) as live:
        yield live


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from safetensors.numpy import save_file

    folder = tmp_path_factory.mktemp("bad-input")
    numpy.save(folder / "f64.npy", numpy.zeros(2, "float64"))
    numpy.save(folder / "f128.npy", numpy.zeros(2, "longdouble"))
    numpy.save(folder / "nan.npy", numpy.array([1.0, numpy.nan], "float32"))
    numpy.save(folder / "huge.npy", numpy.array([1.0, 1e300]))
    numpy.save(folder / "wide.npy", numpy.zeros((2, 5), "float32"))
    numpy.save(folder / "small.npy", numpy.zeros((2, 4), "float32"))
    save_file({"first.weight": numpy.zeros((3, 4), "float32")}, folder / "part.safetensors")
    return folder


def named(arguments: tuple[str, ...], files: Path) -> list[str]:
    """The arguments, with the names of files in their folder."""
    return [str(files / word) if word.endswith((".npy", ".safetensors")) else word for word in arguments]


def refused(call: Callable[[], Any], kind: type[ModscopeError], reason: str) -> ModscopeError:
    with pytest.raises(ModscopeError) as caught:
        call()
    assert (type(caught.value), caught.value.reason) == (kind, reason), caught.value
    assert caught.value.hint, f"no hint: {caught.value}"
    return caught.value


def refused_by_cli(
    arguments: list[str], exit_code: int, kind: type[ModscopeError], reason: str, **options: Any
) -> dict[str, Any]:
    outcome = cli("-o", "json", *arguments, **options)
    assert outcome.code == exit_code, outcome
    assert outcome.out == ""
    error = outcome.error
    assert (error["code"], error["reason"]) == (kind.code, reason)
    assert error["hint"]
    return error


@pytest.mark.parametrize("row", ROWS, ids=[row.name.replace(" ", "-") for row in ROWS])
def test_bad_arguments(row: Row, live: Served, files: Path) -> None:
    before = fingerprint(live.module)
    error = refused(lambda: row.call(live.model), row.error, row.reason)
    assert row.told in str(error)
    told = refused_by_cli(named(row.arguments, files), row.exit_code, row.error, row.reason, scope=live.scope)
    assert row.told in told["message"] + told["hint"]
    assert fingerprint(live.module) == before


def test_an_error_for_people_names_reason_and_remedy(live: Served) -> None:
    outcome = cli("get", "first.weigth", scope=live.scope)
    assert outcome.code == 3
    assert outcome.out == ""
    assert "first.weigth" in outcome.err
    assert "first.weight" in outcome.err
    assert "Traceback" not in outcome.err


def test_unknown_model(live: Served) -> None:
    error = refused(lambda: live.client.model("other").modules(), NotFound, "UNKNOWN_MODEL")
    assert "other" in str(error)
    assert "model" in error.hint
    refused_by_cli(["--model", "other", "modules"], 3, NotFound, "UNKNOWN_MODEL", scope=live.scope)


def test_several_models_must_be_told_apart() -> None:
    with served(nn.Linear(1, 1)) as one:
        pass
    with modscope_server.attach({"generator": one.module, "critic": nn.Linear(2, 1)}) as scope:
        with connect(scope.address, token=scope.token) as client:
            error = refused(lambda: client.model().modules(), NotFound, "UNKNOWN_MODEL")
            assert "generator" in str(error)
            assert "critic" in str(error)
        refused_by_cli(["modules"], 3, NotFound, "UNKNOWN_MODEL", scope=scope)


def test_an_empty_listing_is_no_error(live: Served) -> None:
    assert live.model.modules("nope") == []
    assert live.model.parameters("*", type="Embedding") == []
    outcome = cli("-o", "json", "modules", "--type", "Embedding", scope=live.scope)
    assert (outcome.code, outcome.json) == (0, [])


def test_wrong_token(live: Served, tmp_path: Path) -> None:
    before = fingerprint(live.module)
    with connect(live.scope.address, token="wrong", timeout=TIMEOUT) as client:
        refused(client.models, Unauthenticated, "BAD_TOKEN")
        refused(lambda: client.model().write("last.bias", fill=0.0), Unauthenticated, "BAD_TOKEN")
    (tmp_path / "token").write_text("wrong\n")
    for verb in (["models"], ["set", "last.bias", "--fill", "0"]):
        arguments = ["--token-file", str(tmp_path / "token"), *verb]
        refused_by_cli(arguments, 4, Unauthenticated, "BAD_TOKEN", scope=live.scope)
    assert fingerprint(live.module) == before


def test_a_viewer_reads_and_cannot_write(live: Served, files: Path) -> None:
    before = fingerprint(live.module)
    viewer = {"MODSCOPE_TOKEN": str(live.scope.viewer_token)}
    with connect(live.scope.address, token=live.scope.viewer_token, timeout=TIMEOUT) as client:
        model = client.model()
        assert model.read("last.bias").shape == (2,)
        assert model.forward(numpy.zeros((2, 4), "float32")).shape == (2, 2)
        for call, _ in MUTATIONS:
            refused(lambda call=call: call(model), PermissionDenied, "VIEWER_TOKEN")  # type: ignore[misc]
    assert cli("get", "last.bias", scope=live.scope, env=viewer).code == 0
    for _, arguments in MUTATIONS:
        refused_by_cli(
            named(arguments, files), 4, PermissionDenied, "VIEWER_TOKEN", scope=live.scope, env=viewer
        )
    assert fingerprint(live.module) == before


def test_a_read_only_server(files: Path) -> None:
    with served(Small(), writable=False) as live:
        before = fingerprint(live.module)
        assert live.client.models()[0].writable is False
        assert live.model.read("last.bias").shape == (2,)
        for call, arguments in MUTATIONS:
            refused(lambda call=call: call(live.model), PermissionDenied, "READ_ONLY_SERVER")  # type: ignore[misc]
            error = refused_by_cli(
                named(arguments, files), 4, PermissionDenied, "READ_ONLY_SERVER", scope=live.scope
            )
            assert "writable" in error["hint"]
        assert fingerprint(live.module) == before


def test_dead_server(tmp_path: Path) -> None:
    with served(nn.Linear(1, 1)) as live:
        address = str(live.scope.address)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{free.getsockname()[1]}"
    for gone in (address, nobody, f"unix:{tmp_path}/none.sock"):
        with connect(gone, token="t", timeout=TIMEOUT) as client:
            error = refused(client.models, Unavailable, "UNREACHABLE")
            assert gone.removeprefix("unix:") in str(error)
        refused_by_cli(
            ["--address", gone, "models"], 6, Unavailable, "UNREACHABLE", env={"MODSCOPE_TOKEN": "t"}
        )


def test_no_server_on_this_host(tmp_path: Path) -> None:
    environment = {"MODSCOPE_RUNTIME_DIR": str(tmp_path)}
    outcome = cli("-o", "json", "ps", env=environment)
    assert (outcome.code, outcome.json) == (0, [])
    refused_by_cli(["models"], 6, Unavailable, "UNREACHABLE", env=environment)


class Gate(nn.Module):
    """Waits in its forward until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.inside = threading.Event()
        self.go_on = threading.Event()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.inside.set()
        assert self.go_on.wait(TIMEOUT)
        y: torch.Tensor = self.layer(x)
        return y


def test_deadline_in_a_forward_that_does_not_end() -> None:
    module = Gate()
    with served(module, torch.optim.SGD(module.parameters(), lr=0.1)) as live:
        before = fingerprint(module)
        thread = threading.Thread(target=lambda: module(torch.zeros(1, 2)))
        thread.start()
        try:
            assert module.inside.wait(TIMEOUT)
            with connect(live.scope.address, token=live.scope.token, timeout=0.5) as hasty:
                model = hasty.model()
                assert len(model.modules()) == 2, "a listing needs no step boundary"
                for call in (
                    lambda: model.write("layer.bias", fill=1.0),
                    lambda: model.freeze("layer.bias"),
                    lambda: model.reinitialize("*"),
                ):
                    error = refused(call, DeadlineExceeded, "NO_SAFE_POINT")
                    assert "forward" in str(error)
            refused_by_cli(
                ["--timeout", "500ms", "set", "layer.bias", "--fill", "1"],
                7, DeadlineExceeded, "NO_SAFE_POINT", scope=live.scope,
            )  # fmt: skip
        finally:
            module.go_on.set()
            thread.join(TIMEOUT)
        assert live.model.read("layer.bias").shape == (2,)
        assert fingerprint(module) == before, "what was refused took effect afterwards"


def test_more_than_the_server_admits(tmp_path: Path) -> None:
    limits = modscope_server.Limits(staging_bytes=1 << 20)
    with served(nn.Linear(600, 600), limits=limits) as live:
        before = fingerprint(live.module)
        refused(lambda: live.model.read("weight"), ResourceExhausted, "LIMIT")
        refused(live.model.state_dict, ResourceExhausted, "LIMIT")
        refused(
            lambda: live.model.write("weight", numpy.zeros((600, 600), "float32")), ResourceExhausted, "LIMIT"
        )
        refused_by_cli(["get", "weight"], 1, ResourceExhausted, "LIMIT", scope=live.scope)
        file = str(tmp_path / "model.safetensors")
        refused_by_cli(["state", "save", file], 1, ResourceExhausted, "LIMIT", scope=live.scope)
        assert list(tmp_path.iterdir()) == [], "a broken download leaves no file"
        assert live.model.read("bias").shape == (600,)
        assert fingerprint(live.module) == before


def test_usage_errors_exit_2(live: Served) -> None:
    for arguments in (["nonsense"], ["get"], ["--timeout", "soon", "models"], ["set", "last.bias"]):
        outcome = cli(*arguments, scope=live.scope)
        assert outcome.code == 2, outcome
        assert outcome.out == ""
