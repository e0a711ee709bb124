"""Finding servers: what the runtime directory holds, what of it is trusted, what wins over what."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modscope_client.discovery import locate, runtime_directory, servers
from modscope_client.errors import FailedPrecondition, Unavailable

_HOLD_LOCK = """
import fcntl, sys
handles = [open(path, "ab") for path in sys.argv[1:]]
for handle in handles:
    fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty runtime directory, and an environment that says nothing else."""
    path = tmp_path / "runtime"
    path.mkdir(mode=0o700)
    monkeypatch.setenv("MODSCOPE_RUNTIME_DIR", str(path))
    monkeypatch.delenv("MODSCOPE_ADDRESS", raising=False)
    monkeypatch.delenv("MODSCOPE_TOKEN", raising=False)
    return path


class Host:
    """Puts servers into a runtime directory, and keeps their locks as their processes would."""

    def __init__(self, base: Path) -> None:
        self._base = base
        self._holders: list[subprocess.Popen[str]] = []

    def put(self, name: str, *, alive: bool = True, **told: Any) -> Path:
        directory = self._base / name
        directory.mkdir(mode=0o700)
        pid = int(name.partition("-")[0])
        record = {
            "address": f"unix:{directory}/server.sock",
            "pid": pid,
            "boot_id": "b",
            "started": 1.5 * pid,
            "models": ["model"],
            "writable": True,
            "token": "operator",
            "viewer_token": "viewer",
            "tls": False,
            "version": "0.1.0",
        } | told
        (directory / "lock").touch(mode=0o600)
        file = directory / "server.json"
        file.touch(mode=0o600)
        file.write_text(json.dumps(record))
        if alive:
            self.hold(directory / "lock")
        return directory

    def hold(self, lock: Path) -> None:
        holder = subprocess.Popen(
            [sys.executable, "-c", _HOLD_LOCK, str(lock)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._holders.append(holder)
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"

    def end_all(self) -> None:
        for holder in self._holders:
            holder.communicate("", timeout=30)
        self._holders.clear()


@pytest.fixture
def host(base: Path) -> Iterator[Host]:
    made = Host(base)
    yield made
    made.end_all()


def test_where_it_looks(monkeypatch: pytest.MonkeyPatch, base: Path, tmp_path: Path) -> None:
    assert runtime_directory() == str(base)
    monkeypatch.delenv("MODSCOPE_RUNTIME_DIR")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    assert runtime_directory() == "/run/user/7/modscope"
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert runtime_directory() == str(tmp_path / f"modscope-{os.getuid()}")


def test_it_looks_where_the_server_puts_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    from modscope_server import discovery as of_the_server

    for name, value in (("MODSCOPE_RUNTIME_DIR", "relative"), ("XDG_RUNTIME_DIR", "/run/user/7")):
        monkeypatch.setenv(name, value)
        assert runtime_directory() == str(of_the_server.runtime_directory())
        monkeypatch.delenv(name)
    assert runtime_directory() == str(of_the_server.runtime_directory())


def test_live_servers_oldest_first(host: Host) -> None:
    host.put("20-bbbbbbbb", models=["generator", "critic"], writable=False)
    host.put("10-aaaaaaaa")
    found = servers()
    assert [server.pid for server in found] == [10, 20]
    assert found[1].models == ("generator", "critic") and not found[1].writable
    assert (found[0].token, found[0].viewer_token, found[0].started) == ("operator", "viewer", 15.0)


def test_the_dead_are_not_found(host: Host) -> None:
    host.put("10-aaaaaaaa")
    assert len(servers()) == 1
    host.end_all()
    assert servers() == []


def test_looking_does_not_take_the_lock(host: Host) -> None:
    directory = host.put("10-aaaaaaaa", alive=False)
    assert servers() == []
    host.hold(directory / "lock")
    assert len(servers()) == 1 == len(servers())


def test_no_directory_is_no_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MODSCOPE_RUNTIME_DIR", str(tmp_path / "nowhere"))
    assert servers() == []


@pytest.mark.parametrize("mode", [0o750, 0o705, 0o777])
def test_a_runtime_directory_that_others_can_enter_is_refused(base: Path, mode: int) -> None:
    base.chmod(mode)
    with pytest.raises(FailedPrecondition, match="not trusted") as refusal:
        servers()
    assert "chmod 700" in refusal.value.hint


def test_a_runtime_directory_that_is_a_link_is_refused(
    base: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    link = tmp_path / "link"
    link.symlink_to(base)
    monkeypatch.setenv("MODSCOPE_RUNTIME_DIR", str(link))
    with pytest.raises(FailedPrecondition):
        servers()


def test_a_record_that_others_could_write_is_not_trusted(host: Host) -> None:
    for number, mode in ((1, 0o640), (2, 0o602), (3, 0o604)):
        (host.put(f"{number}-aaaaaaaa") / "server.json").chmod(mode)
    host.put("4-aaaaaaaa").chmod(0o750)
    linked = host.put("5-aaaaaaaa") / "server.json"
    linked.rename(linked.with_name("elsewhere"))
    linked.symlink_to("elsewhere")
    assert servers() == []


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '"x"', '{"pid": 10}', '{"address": 1, "pid": "x"}', "[" * 100_000]
)
def test_a_malformed_record_is_passed_over(host: Host, text: str) -> None:
    (host.put("10-aaaaaaaa") / "server.json").write_text(text)
    host.put("20-aaaaaaaa")
    assert [server.pid for server in servers()] == [20]


def test_other_things_in_the_directory_are_passed_over(host: Host, base: Path) -> None:
    (base / "file").write_text("x")
    (base / "30-empty").mkdir(mode=0o700)
    directory = host.put("40-nolock", alive=False)
    (directory / "lock").unlink()
    assert servers() == []


def test_a_server_of_this_very_process_is_found_and_keeps_its_lock(host: Host) -> None:
    import fcntl

    directory = host.put(f"{os.getpid()}-aaaaaaaa", alive=False)
    assert servers() == [], "an earlier process with this pid left it"
    with open(directory / "lock", "ab") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert len(servers()) == 1
        probe = [sys.executable, "-c", _HOLD_LOCK, str(directory / "lock")]
        done = subprocess.run(probe, stdin=subprocess.DEVNULL, capture_output=True, timeout=30)
        assert b"BlockingIOError" in done.stderr, "looking must not have dropped the lock"


def test_the_only_server(host: Host) -> None:
    directory = host.put("10-aaaaaaaa", tls=True)
    assert locate(None, None) == (f"unix:{directory}/server.sock", "operator", True)
    assert locate(None, "mine")[1] == "mine"


def test_none_and_several(host: Host, base: Path) -> None:
    with pytest.raises(Unavailable, match="no server on this host") as none:
        locate(None, None)
    assert none.value.reason == "UNREACHABLE"
    assert str(base) in str(none.value) and "attach" in none.value.hint
    host.put("10-aaaaaaaa", models=["gan"])
    host.put("20-bbbbbbbb")
    with pytest.raises(FailedPrecondition, match="2 servers") as several:
        locate(None, None)
    for part in ("10-aaaaaaaa/server.sock", "20-bbbbbbbb/server.sock", "pid 20", "gan"):
        assert part in several.value.message
    assert "MODSCOPE_ADDRESS" in several.value.hint


def test_what_wins(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.put("10-aaaaaaaa")
    monkeypatch.setenv("MODSCOPE_TOKEN", "of-env")
    assert locate(None, None)[1] == "of-env"
    monkeypatch.setenv("MODSCOPE_ADDRESS", "gpu:1")
    assert locate(None, None) == ("gpu:1", "of-env", False)
    assert locate("other:2", "mine") == ("other:2", "mine", False)
    monkeypatch.delenv("MODSCOPE_TOKEN")
    assert locate(None, None) == ("gpu:1", None, False)
    monkeypatch.setenv("MODSCOPE_ADDRESS", "")
    assert locate(None, None)[0].endswith("10-aaaaaaaa/server.sock")


def test_an_address_of_this_host_brings_its_token(host: Host, base: Path) -> None:
    directory = host.put("10-aaaaaaaa")
    address = f"unix:{directory}/server.sock"
    assert locate(address, None) == (address, "operator", False)
    host.put("20-bbbbbbbb", address="localhost:7", tls=True)
    assert locate("localhost:7", "mine") == ("localhost:7", "mine", True)
    assert locate("unix:/elsewhere", None) == ("unix:/elsewhere", None, False)
    base.chmod(0o755)
    assert locate(address, None) == (address, None, False), "a directory that is not trusted gives no token"
