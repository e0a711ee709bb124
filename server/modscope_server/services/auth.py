"""Who calls, and what they may: bearer tokens of two roles, checked before anything else."""

from __future__ import annotations

import enum
import hmac
from collections.abc import Callable, Iterable
from typing import TypeVar

from modscope_server.errors import BadToken, ReadOnlyServer, ViewerToken

__all__ = ["Guard", "Role", "changes", "is_change"]

F = TypeVar("F", bound=Callable[..., object])


class Role(enum.Enum):
    """What a token lets its bearer do."""

    VIEWER = "viewer"
    OPERATOR = "operator"


def changes(method: F) -> F:
    """Mark a servicer's method as mutating: it needs the operator token and a writable server."""
    method.__modscope_changes__ = True  # type: ignore[attr-defined]
    return method


def is_change(method: Callable[..., object]) -> bool:
    """Whether a servicer's method is marked as mutating."""
    return getattr(method, "__modscope_changes__", False)


class Guard:
    """Knows the tokens of a server, and whether it admits changes at all."""

    def __init__(self, operator: str, viewer: str, *, writable: bool) -> None:
        self._operator = operator.encode()
        self._viewer = viewer.encode()
        self._writable = writable

    def admit(self, metadata: Iterable[tuple[str, str | bytes]], *, change: bool) -> Role:
        """The caller's role. Raises BadToken, or ViewerToken or ReadOnlyServer for a `change`."""
        role = self._role(metadata)
        if change:
            if role is not Role.OPERATOR:
                raise ViewerToken(
                    "the viewer token reads only, and this call changes the model",
                    hint="use the operator token: scope.token, or what is in the token file named at start",
                )
            if not self._writable:
                raise ReadOnlyServer(
                    "this server was attached read-only, and this call changes the model",
                    hint="attach with writable=True, or start modscope-server with --writable",
                )
        return role

    def _role(self, metadata: Iterable[tuple[str, str | bytes]]) -> Role:
        given = next((value for key, value in metadata if key == "authorization"), None)
        if given is None:
            raise BadToken("no token was sent", hint=_HINT)
        scheme, _, token = (given if isinstance(given, bytes) else given.encode()).partition(b" ")
        if scheme.lower() != b"bearer":
            raise BadToken("the metadata `authorization` is not of the form `Bearer TOKEN`", hint=_HINT)
        token = token.strip()
        # Both are compared whatever the first says, so that time tells nothing.
        operator, viewer = (
            hmac.compare_digest(token, self._operator),
            hmac.compare_digest(token, self._viewer),
        )
        if operator:
            return Role.OPERATOR
        if viewer:
            return Role.VIEWER
        raise BadToken("the token is none that this server gave", hint=_HINT)


_HINT = "give the token with --token-file, MODSCOPE_TOKEN or token=; the server named its token file at start"
