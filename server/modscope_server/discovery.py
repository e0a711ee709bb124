"""The runtime directory, in which servers of one user are found by clients on the same host.

Each server has a directory of its own, `<pid>-<random>`, mode 0700, with `server.sock` (the default
address), `lock` (a POSIX record lock, held for life, so that a dead server's is free), `token` and
`server.json`, written last and atomically.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import stat
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from modscope_server.address import MAX_UNIX_PATH
from modscope_server.errors import ConfigurationError

__all__ = ["Place", "boot_id", "hold_lock", "remove_stale", "runtime_directory"]

_NEWBORN_SECONDS = 60.0
_held: set[str] = set()


def boot_id() -> str:
    """What tells this boot of this host from others."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"host-{uuid.getnode():x}"


def runtime_directory() -> Path:
    """Where servers of this user put their directories, whether it exists or not."""
    chosen = os.environ.get("MODSCOPE_RUNTIME_DIR")
    if chosen:
        return Path(chosen).absolute()
    session = os.environ.get("XDG_RUNTIME_DIR")
    if session:
        return Path(session).absolute() / "modscope"
    return Path(tempfile.gettempdir()).absolute() / f"modscope-{os.getuid()}"


class Place:
    """A server's own directory, from `create` to `remove`."""

    def __init__(self, directory: Path, lock: IO[bytes]) -> None:
        self.directory = directory
        self.token_file = directory / "token"
        self._lock = lock
        self._elsewhere: str | None = None
        self._pid = os.getpid()

    @classmethod
    def create(cls) -> Place:
        """Make a directory, locked from the moment at which its lock file can be seen.

        Stale directories beside it are removed. Raises ConfigurationError where the runtime
        directory cannot be made, or others than its owner could get into it.
        """
        base = _private_base()
        remove_stale(base)
        directory = base / f"{os.getpid()}-{secrets.token_hex(4)}"
        directory.mkdir(mode=0o700)
        _held.add(str(directory))
        unseen = directory / "lock.new"
        lock = hold_lock(unseen)
        if lock is None:
            raise ConfigurationError(
                f"{unseen} is locked by another process", hint="set MODSCOPE_RUNTIME_DIR"
            )
        unseen.rename(directory / "lock")
        return cls(directory, lock)

    def socket_path(self) -> str:
        """Path of the default socket; in a short directory of its own where this one's path is too long."""
        path = str(self.directory / "server.sock")
        if len(path.encode()) <= MAX_UNIX_PATH:
            return path
        self._elsewhere = tempfile.mkdtemp(prefix="modscope-")
        path = os.path.join(self._elsewhere, "s")
        if len(path.encode()) > MAX_UNIX_PATH:
            raise ConfigurationError(
                f"both the runtime directory and the temp dir are too long for a Unix socket: {path!r}",
                hint="set MODSCOPE_RUNTIME_DIR to a short directory, or give address='localhost:0'",
                field="address",
            )
        return path

    def publish(self, record: Mapping[str, Any], token: str) -> None:
        """Let clients find the server: write the token file, then server.json."""
        _write_private(self.token_file, f"{token}\n")
        _write_private(self.directory / "server.json", json.dumps(dict(record), indent=1))

    def remove(self) -> None:
        """Take everything away. Idempotent; does nothing in a forked child."""
        if os.getpid() != self._pid or self._lock.closed:
            return
        with contextlib.suppress(OSError):
            (self.directory / "server.json").unlink(missing_ok=True)
        for directory in (self._elsewhere, str(self.directory)):
            if directory is not None:
                shutil.rmtree(directory, ignore_errors=True)
        self._lock.close()
        _held.discard(str(self.directory))


def hold_lock(path: Path) -> IO[bytes] | None:
    """Open and lock a file until it is closed; None where another process holds it.

    A process loses its record locks on a file with the first descriptor of it that it closes, so no
    process may call this for a file that it has locked already.
    """
    handle = open(path, "ab", opener=_open_private)  # noqa: SIM115 - held for life
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        handle.close()
        return None
    return handle


def remove_stale(base: Path) -> None:
    """Remove the directories of servers that are no more."""
    for directory in _servers_in(base):
        lock = directory / "lock"
        try:
            if not lock.exists():
                # Its server may be about to make the lock file.
                if time.time() - directory.stat().st_mtime > _NEWBORN_SECONDS:
                    shutil.rmtree(directory, ignore_errors=True)
                continue
            handle = hold_lock(lock)
            if handle is not None:
                with handle:
                    shutil.rmtree(directory, ignore_errors=True)
        except OSError:
            continue


def _servers_in(base: Path) -> Iterator[Path]:
    for entry in os.scandir(base):
        pid, _, random = entry.name.partition("-")
        ours = entry.is_dir(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_uid == os.getuid()
        if ours and pid.isdigit() and random and entry.path not in _held:
            yield Path(entry.path)


def _private_base() -> Path:
    base = runtime_directory()
    try:
        base.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            base.mkdir(mode=0o700)
        found = base.lstat()
    except OSError as error:
        raise ConfigurationError(
            f"the runtime directory {str(base)!r} cannot be made: {error.strerror}",
            hint="set MODSCOPE_RUNTIME_DIR to a directory that you own",
        ) from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise ConfigurationError(
            f"the runtime directory {str(base)!r} is no directory of yours",
            hint="set MODSCOPE_RUNTIME_DIR to a directory that you own",
        )
    mode = stat.S_IMODE(found.st_mode)
    if mode & 0o077:
        raise ConfigurationError(
            f"the runtime directory {str(base)!r} can be entered by others: mode {mode:04o}",
            hint=f"run `chmod 700 {base}`, or set MODSCOPE_RUNTIME_DIR to a directory of mode 0700",
        )
    return base


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _write_private(path: Path, text: str) -> None:
    unfinished = path.with_suffix(".new")
    with open(unfinished, "w", opener=_open_private) as file:
        file.write(text)
    unfinished.replace(path)
