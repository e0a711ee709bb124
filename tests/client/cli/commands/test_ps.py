"""ps: servers of this host, none of them asked."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.client.cli.conftest import Live, Modscope


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "run"
    folder.mkdir(mode=0o700)
    monkeypatch.setenv("MODSCOPE_RUNTIME_DIR", str(folder))
    return folder


def test_none(runtime: Path, modscope: Modscope) -> None:
    outcome = modscope("ps")
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "no server on this host\n")
    assert modscope("ps", "-o", "json").json == []


def test_a_server_and_no_token(live: Live, modscope: Modscope) -> None:
    found = {server["address"]: server for server in modscope("ps", "-o", "json").json}
    server = found[live.scope.address]
    assert server["pid"] == os.getpid()
    assert server["models"] == ["model"]
    assert server["writable"] is True
    printed = "".join(modscope("ps", "-o", form).out for form in ("json", "jsonl", "yaml", "table", "name"))
    assert live.scope.address in printed
    assert live.scope.token not in printed
    assert live.scope.viewer_token not in printed


def test_what_a_dead_server_left_is_not_listed(runtime: Path, modscope: Modscope) -> None:
    left = runtime / "1-00000000"
    left.mkdir(mode=0o700)
    (left / "lock").touch(0o600)
    record = {
        "address": f"unix:{left}/server.sock",
        "pid": 1,
        "started": 0,
        "models": ["m"],
        "writable": False,
    }
    (left / "server.json").touch(0o600)
    (left / "server.json").write_text(json.dumps(record))
    assert modscope("ps", "-o", "json").json == []
