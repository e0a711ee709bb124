"""Tokens: two roles, compared as bytes in constant time, refused with what to do."""

from __future__ import annotations

import pytest

from modscope_server.errors import BadToken, ReadOnlyServer, ViewerToken
from modscope_server.services.auth import Guard, Role, changes, is_change

GUARD = Guard("operator-token", "viewer-token", writable=True)
READ_ONLY = Guard("operator-token", "viewer-token", writable=False)


def bearing(value: str | bytes) -> list[tuple[str, str | bytes]]:
    return [("user-agent", "test"), ("authorization", value), ("modscope-caller", "a/1/2")]


@pytest.mark.parametrize("guard", [GUARD, READ_ONLY])
def test_both_tokens_read(guard: Guard) -> None:
    assert guard.admit(bearing("Bearer operator-token"), change=False) is Role.OPERATOR
    assert guard.admit(bearing("Bearer viewer-token"), change=False) is Role.VIEWER


@pytest.mark.parametrize(
    "value", ["bearer operator-token", "BEARER  operator-token", b"Bearer operator-token"]
)
def test_the_scheme_is_read_as_http_says(value: str | bytes) -> None:
    assert GUARD.admit(bearing(value), change=True) is Role.OPERATOR


@pytest.mark.parametrize(
    "value",
    [
        "",
        "Bearer",
        "Bearer ",
        "operator-token",
        "Basic operator-token",
        "Bearer operator-toke",
        "Bearer é",
        b"\xff",
        "Bearer operator-token2",
        "Bearer OPERATOR-TOKEN",
        b"Bearer \xff\x00",
    ],
)
@pytest.mark.parametrize("change", [False, True])
def test_what_is_no_token_is_refused(value: str | bytes, change: bool) -> None:
    with pytest.raises(BadToken) as raised:
        GUARD.admit(bearing(value), change=change)
    assert "MODSCOPE_TOKEN" in raised.value.hint
    assert "operator-token" not in raised.value.message


def test_no_token_is_refused() -> None:
    with pytest.raises(BadToken, match="no token was sent"):
        GUARD.admit([("user-agent", "test")], change=False)


def test_a_viewer_changes_nothing() -> None:
    for guard in (GUARD, READ_ONLY):
        with pytest.raises(ViewerToken):
            guard.admit(bearing("Bearer viewer-token"), change=True)


def test_nobody_changes_a_read_only_server() -> None:
    with pytest.raises(ReadOnlyServer, match="read-only") as raised:
        READ_ONLY.admit(bearing("Bearer operator-token"), change=True)
    assert "writable=True" in raised.value.hint


def test_a_method_is_mutating_only_where_it_says_so() -> None:
    class Servicer:
        @changes
        def write(self) -> None: ...

        def read(self) -> None: ...

    assert is_change(Servicer().write)
    assert not is_change(Servicer().read)
