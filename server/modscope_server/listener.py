"""Binding a gRPC server to an address that nobody else serves."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from pathlib import Path
from typing import IO, ClassVar

import grpc

from modscope_server.address import TcpAddress, UnixAddress
from modscope_server.config import TLS
from modscope_server.discovery import hold_lock
from modscope_server.errors import ConfigurationError

__all__ = ["UnixClaim", "bind_tcp", "bind_unix"]


class UnixClaim:
    """A Unix socket path that is ours alone, from the moment it is claimed until `release`.

    gRPC replaces whatever socket stands at a path, a live server's too. So a lock file beside the
    socket is held for life, and a socket that answers is left alone whoever made it.
    """

    _ours: ClassVar[set[str]] = set()

    def __init__(self, address: UnixAddress) -> None:
        self.path = address.path
        self._lock_path = Path(f"{address.path}.lock")
        if self.path in self._ours or _answers(self.path):
            raise _in_use(address)
        self._lock = self._acquire(address)
        self._ours.add(self.path)

    def release(self) -> None:
        """Take the socket and the lock file away. Idempotent."""
        if self._lock.closed:
            return
        for path in (self.path, self._lock_path):
            with contextlib.suppress(OSError):
                os.unlink(path)
        self._lock.close()
        self._ours.discard(self.path)

    def _acquire(self, address: UnixAddress) -> IO[bytes]:
        while True:
            try:
                lock = hold_lock(self._lock_path)
            except OSError as error:
                raise ConfigurationError(
                    f"address {str(address)!r}: {error.strerror}",
                    hint="give a socket in a directory that exists and that you may write to",
                    field="address",
                ) from error
            if lock is None:
                raise _in_use(address)
            with contextlib.suppress(OSError):
                if os.path.samestat(os.fstat(lock.fileno()), os.stat(self._lock_path)):
                    return lock
            # The server before us has removed the file that was locked here.
            lock.close()


def bind_unix(server: grpc.Server, address: UnixAddress) -> None:
    """Listen at a Unix socket that is claimed or lies in a private directory; only its owner may connect."""
    try:
        server.add_insecure_port(str(address))
        os.chmod(address.path, 0o600)
    except (RuntimeError, OSError) as error:
        raise ConfigurationError(
            f"address {str(address)!r} cannot be listened at: {error}",
            hint="give a socket in a directory that exists and that you may write to",
            field="address",
        ) from error


def bind_tcp(server: grpc.Server, address: TcpAddress, tls: TLS | None) -> TcpAddress:
    """Listen at a TCP port; gives the address with the real port. Beyond loopback only with TLS."""
    if tls is None and not address.loopback:
        raise ConfigurationError(
            f"address {str(address)!r} can be reached from other hosts, and tls is not set: "
            "tokens and tensors would travel in the clear",
            hint="give tls=TLS(cert=..., key=...), or listen at localhost:0 and forward the port over ssh",
            field="tls",
        )
    try:
        if tls is None:
            port = server.add_insecure_port(str(address))
        else:
            port = server.add_secure_port(str(address), _credentials(tls))
    except RuntimeError as error:
        raise ConfigurationError(
            f"address {str(address)!r} cannot be listened at: another process has the port, the host is none "
            "of this machine's, or the files of tls are no PEM",
            hint=f"give {TcpAddress(address.host, 0)} for a free port",
            field="address",
        ) from error
    return TcpAddress(address.host, port)


def _credentials(tls: TLS) -> grpc.ServerCredentials:
    try:
        key, cert = Path(tls.key).read_bytes(), Path(tls.cert).read_bytes()
        authority = None if tls.client_ca is None else Path(tls.client_ca).read_bytes()
    except OSError as error:
        raise ConfigurationError(
            f"tls: {error.filename} cannot be read: {error.strerror}",
            hint="check its permissions",
            field="tls",
        ) from error
    return grpc.ssl_server_credentials(
        [(key, cert)], root_certificates=authority, require_client_auth=authority is not None
    )


def _answers(path: str) -> bool:
    """Whether somebody listens at a Unix socket."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return True
    except OSError:
        return False
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            # Such as a listener that is too busy to take one more.
            return True
        return True


def _in_use(address: UnixAddress) -> ConfigurationError:
    return ConfigurationError(
        f"address {str(address)!r} is in use",
        hint="end the server there, or leave address out for a socket of its own",
        field="address",
    )
