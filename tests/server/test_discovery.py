"""The runtime directory: private, found by clients, cleaned of dead servers, never of living ones."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from modscope_server.discovery import Place, boot_id, hold_lock, runtime_directory
from modscope_server.errors import ConfigurationError

HOLDER = """
import sys
from modscope_server.discovery import Place
place = Place.create()
place.publish({"pid": 0}, "secret")
print(place.directory, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def base(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ms-") as directory:
        path = Path(directory) / "run"
        monkeypatch.setenv("MODSCOPE_RUNTIME_DIR", str(path))
        yield path


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_nothing_in_it_can_be_read_by_others(base: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        place = Place.create()
        place.publish({"address": "unix:/x"}, "secret")
    finally:
        os.umask(before)
    assert mode_of(base) == mode_of(place.directory) == 0o700
    files = {file.name: mode_of(file) for file in place.directory.iterdir()}
    assert files == {"lock": 0o600, "token": 0o600, "server.json": 0o600}
    place.remove()


def test_what_clients_read_is_what_was_published(base: Path) -> None:
    place = Place.create()
    assert place.directory.parent == base
    assert place.directory.name.startswith(f"{os.getpid()}-")
    place.publish({"address": "unix:/x", "models": ["a"]}, "secret")
    assert json.loads((place.directory / "server.json").read_text()) == {
        "address": "unix:/x",
        "models": ["a"],
    }
    assert place.token_file.read_text() == "secret\n"
    place.remove()
    assert list(base.iterdir()) == []
    place.remove()


def test_the_directory_of_a_dead_server_is_removed_and_of_a_living_one_is_not(base: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        other = Path(holder.stdout.readline().strip())
        Place.create().remove()
        assert (other / "server.json").exists()
        holder.kill()
        holder.wait()
    assert other.exists()
    Place.create().remove()
    assert not other.exists()


def test_a_directory_of_this_very_pid_that_nobody_holds_is_stale(base: Path) -> None:
    left = base / f"{os.getpid()}-0123abcd"
    left.mkdir(parents=True)
    base.chmod(0o700)
    (left / "lock").touch()
    place = Place.create()
    assert not left.exists()
    # The lock of our own first server survives the look that the second takes around.
    second = Place.create()
    assert place.directory.exists()
    assert subprocess.run(
        [sys.executable, "-c", f"from pathlib import Path; from modscope_server.discovery import hold_lock; "
         f"raise SystemExit(hold_lock(Path({str(place.directory / 'lock')!r})) is not None)"],
        check=False,
    ).returncode == 0  # fmt: skip
    second.remove()
    place.remove()


def test_a_directory_without_a_lock_is_left_alone_while_it_is_new(base: Path) -> None:
    newborn = base / "1-0123abcd"
    newborn.mkdir(parents=True)
    base.chmod(0o700)
    Place.create().remove()
    assert newborn.exists()
    past = time.time() - 3600
    os.utime(newborn, (past, past))
    Place.create().remove()
    assert not newborn.exists()


def test_what_no_server_made_is_left_alone(base: Path) -> None:
    base.mkdir(mode=0o700)
    (base / "notes").mkdir()
    (base / "7-file").touch()
    (base / "7-link").symlink_to("notes")
    Place.create().remove()
    assert sorted(entry.name for entry in base.iterdir()) == ["7-file", "7-link", "notes"]


def test_a_directory_that_others_can_enter_is_refused(base: Path) -> None:
    base.mkdir()
    base.chmod(0o750)
    with pytest.raises(ConfigurationError, match="0750") as raised:
        Place.create()
    assert f"chmod 700 {base}" in raised.value.hint
    assert list(base.iterdir()) == []


def test_a_link_in_its_place_is_refused(base: Path) -> None:
    target = base.parent / "elsewhere"
    target.mkdir(mode=0o700)
    base.symlink_to(target)
    with pytest.raises(ConfigurationError, match="no directory of yours"):
        Place.create()


def test_a_directory_that_cannot_be_made_is_told(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base.parent.joinpath("file").touch()
    monkeypatch.setenv("MODSCOPE_RUNTIME_DIR", str(base.parent / "file" / "run"))
    with pytest.raises(ConfigurationError, match="cannot be made") as raised:
        Place.create()
    assert "MODSCOPE_RUNTIME_DIR" in raised.value.hint


def test_a_path_too_long_for_a_socket_gets_a_short_directory(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODSCOPE_RUNTIME_DIR", str(base / ("a" * 100)))
    place = Place.create()
    path = Path(place.socket_path())
    assert len(str(path).encode()) <= 107
    assert mode_of(path.parent) == 0o700
    place.remove()
    assert not path.parent.exists()


def test_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MODSCOPE_RUNTIME_DIR")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert runtime_directory() == tmp_path / "modscope"
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert runtime_directory() == Path(tempfile.gettempdir()) / f"modscope-{os.getuid()}"


def test_a_lock_that_another_process_holds_is_not_had(base: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        lock = Path(holder.stdout.readline().strip()) / "lock"
        assert hold_lock(lock) is None
        holder.kill()
        holder.wait()
    held = hold_lock(lock)
    assert held is not None
    held.close()


def test_the_boot_is_told() -> None:
    assert boot_id()
    assert boot_id() == boot_id()
