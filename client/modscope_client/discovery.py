"""Finding servers on this host: the runtime directory's server.json files, and the environment.

A record is trusted only where the user alone can have written it and its server still holds its
lock. Nothing here imports grpc.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
from typing import Any

from modscope_client.errors import FailedPrecondition, Unavailable
from modscope_client.types import ServerInfo

__all__ = ["ADDRESS_VARIABLE", "TOKEN_VARIABLE", "locate", "runtime_directory", "servers"]

ADDRESS_VARIABLE = "MODSCOPE_ADDRESS"
TOKEN_VARIABLE = "MODSCOPE_TOKEN"

_MAX_RECORD_BYTES = 1 << 20


def runtime_directory() -> str:
    """Where servers of this user put their directories, whether it exists or not."""
    chosen = os.environ.get("MODSCOPE_RUNTIME_DIR")
    if chosen:
        return os.path.abspath(chosen)
    session = os.environ.get("XDG_RUNTIME_DIR")
    if session:
        return os.path.join(os.path.abspath(session), "modscope")
    import tempfile

    return os.path.join(os.path.abspath(tempfile.gettempdir()), f"modscope-{os.getuid()}")


def servers() -> list[ServerInfo]:
    """The servers of this user on this host, the oldest first.

    Raises FailedPrecondition where others could have written into the runtime directory.
    """
    base = runtime_directory()
    if not os.path.isdir(base):
        return []
    if not _ours_alone(base, stat.S_ISDIR):
        raise FailedPrecondition(
            f"the runtime directory {base!r} can be entered by others, so what it says is not trusted",
            hint=f"run `chmod 700 {base}` if it is yours, or set MODSCOPE_RUNTIME_DIR",
        )
    found = (_server_in(os.path.join(base, name)) for name in os.listdir(base))
    return sorted((server for server in found if server), key=lambda server: (server.started, server.pid))


def locate(address: str | None, token: str | None) -> tuple[str, str | None, bool]:
    """Address, token and whether TLS is spoken there, from arguments, the environment and this host.

    An argument wins over the environment, and that over what the server's own record says. Raises
    Unavailable where there is no server, FailedPrecondition where there are several.
    """
    address = address or os.environ.get(ADDRESS_VARIABLE) or None
    token = token or os.environ.get(TOKEN_VARIABLE) or None
    if address is None:
        only = _only(servers())
        return only.address, token or only.token or None, only.tls
    if token is not None and address.startswith("unix:"):
        return address, token, False
    match = next((server for server in _servers_if_trusted() if server.address == address), None)
    return (address, token, False) if match is None else (address, token or match.token or None, match.tls)


def _only(found: list[ServerInfo]) -> ServerInfo:
    if not found:
        raise Unavailable(
            f"no server on this host (looked in {runtime_directory()!r})",
            hint="call modscope_server.attach(model) in the training script, or give an address",
        )
    if len(found) > 1:
        named = ", ".join(f"{s.address} (pid {s.pid}: {', '.join(s.models)})" for s in found)
        raise FailedPrecondition(
            f"{len(found)} servers on this host: {named}",
            reason="SEVERAL_SERVERS",
            hint=f"choose one: connect(address), or set {ADDRESS_VARIABLE}",
        )
    return found[0]


def _servers_if_trusted() -> list[ServerInfo]:
    """The servers, or none where the runtime directory is not to be trusted."""
    try:
        return servers()
    except (FailedPrecondition, OSError):
        return []


def _server_in(directory: str) -> ServerInfo | None:
    """The live server of one directory; None for a stale, foreign or malformed one."""
    record = os.path.join(directory, "server.json")
    try:
        if not (_ours_alone(directory, stat.S_ISDIR) and _ours_alone(record, stat.S_ISREG)):
            return None
        with open(record, "rb") as file:
            told = json.loads(file.read(_MAX_RECORD_BYTES))
        server = _server_from(told)
        return server if _is_alive(os.path.join(directory, "lock"), server.pid) else None
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


def _server_from(told: dict[str, Any]) -> ServerInfo:
    return ServerInfo(
        address=str(told["address"]),
        pid=int(told["pid"]),
        started=float(told["started"]),
        models=tuple(map(str, told["models"])),
        writable=bool(told["writable"]),
        version=str(told.get("version", "")),
        tls=bool(told.get("tls", False)),
        token=str(told.get("token", "")),
        viewer_token=str(told.get("viewer_token", "")),
    )


def _ours_alone(path: str, is_kind: Any) -> bool:
    found = os.lstat(path)
    return bool(is_kind(found.st_mode)) and found.st_uid == os.getuid() and not found.st_mode & 0o077


def _is_alive(lock: str, pid: int) -> bool:
    """Whether the server that made the lock file still holds it."""
    if pid == os.getpid():
        # Closing a descriptor of it would drop the lock that this very process holds.
        return _is_open_here(lock)
    descriptor = os.open(lock, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        # Shared, so that two clients that look at once do not take each other for the server.
        fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in (errno.EACCES, errno.EAGAIN)
    finally:
        os.close(descriptor)
    return False


def _is_open_here(path: str) -> bool:
    """Whether this process has the file open; another server of an earlier process may have had this pid."""
    wanted = os.lstat(path)
    for name in os.listdir("/dev/fd"):
        try:
            found = os.fstat(int(name))
        except OSError:
            continue
        if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino):
            return True
    return False
