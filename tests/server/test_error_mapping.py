"""Errors on the wire: status, stable reason, hint, the wrong argument; never a traceback, never too long."""

from __future__ import annotations

import inspect
import logging
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from modscope.reasons import DOMAIN, status_of
from modscope_server import errors
from modscope_server.services.error_mapping import DETAILS_KEY, fail

LEAVES = [
    value
    for _, value in inspect.getmembers(errors, inspect.isclass)
    if issubclass(value, errors.ModscopeServerError) and "reason" in vars(value)
]


class Context:
    """What fail needs of a servicer's context."""

    def __init__(self) -> None:
        self.trailers: dict[str, bytes] = {}
        self.code: grpc.StatusCode | None = None
        self.details = ""

    def set_trailing_metadata(self, trailers: tuple[tuple[str, bytes], ...]) -> None:
        self.trailers = dict(trailers)

    def abort(self, code: grpc.StatusCode, details: str) -> None:
        self.code, self.details = code, details
        raise ConnectionAbortedError


def aborted(error: BaseException) -> tuple[Context, status_pb2.Status, error_details_pb2.ErrorInfo]:
    context = Context()
    with pytest.raises(ConnectionAbortedError):
        fail(context, error)
    status = status_pb2.Status.FromString(context.trailers[DETAILS_KEY])
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return context, status, info


@pytest.mark.parametrize("leaf", LEAVES, ids=lambda leaf: leaf.__name__)
def test_every_error_of_ours_travels_under_its_reason(leaf: type[errors.ModscopeServerError]) -> None:
    context, status, info = aborted(leaf("what was wrong", hint="what to do", shown="[3, 1]"))
    assert context.code is not None
    assert context.code.name == status_of(leaf.reason)
    assert (status.code, status.message, context.details) == (
        context.code.value[0], "what was wrong", "what was wrong",
    )  # fmt: skip
    assert (info.reason, info.domain) == (leaf.reason, DOMAIN)
    assert dict(info.metadata) == {"hint": "what to do", "shown": "[3, 1]"}
    assert len(status.details) == 1


def test_the_wrong_argument_is_named() -> None:
    _, status, _ = aborted(errors.BadGlobError("glob '[' has no ]", hint="close it", field="glob"))
    violations = error_details_pb2.BadRequest()
    assert status.details[1].Unpack(violations)
    (violation,) = violations.field_violations
    assert (violation.field, violation.description) == ("glob", "glob '[' has no ]")


def test_an_unexpected_error_shows_its_type_and_message_and_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def inner() -> None:
        raise ZeroDivisionError("by accident")

    with pytest.raises(ZeroDivisionError) as raised:
        inner()
    with caplog.at_level(logging.ERROR, "modscope_server"):
        context, status, info = aborted(raised.value)
    assert context.code is grpc.StatusCode.INTERNAL
    assert status.message == "ZeroDivisionError: by accident"
    assert info.reason == "INTERNAL"
    assert "inner" not in status.SerializeToString().decode("latin-1")
    assert "Traceback" not in status.SerializeToString().decode("latin-1")
    assert "in inner" in caplog.text


def test_an_error_that_cannot_be_printed_still_travels() -> None:
    class Unprintable(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    _, status, _ = aborted(Unprintable())
    assert status.message.startswith("Unprintable")


@pytest.mark.parametrize(
    "text", ["x" * 100_000, "é" * 100_000, "模" * 3_000 + "x" * 50_000, "%" * 50_000, "\n" * 9_000]
)
def test_long_texts_fit_into_the_trailers_that_grpc_admits(text: str) -> None:
    details: Any = {f"key{number}": text for number in range(20)}
    context, status, _ = aborted(errors.BadRequest(text, hint=text, field="data", **details))
    encoded = "".join(
        chr(byte) if 32 <= byte <= 126 and byte != 37 else "%xx" for byte in context.details.encode()
    )
    assert len(encoded) + len(status.SerializeToString()) * 4 / 3 < 8_000
    assert "more characters)" in context.details
    assert context.details.startswith(text[:100])


def test_a_lone_surrogate_does_not_break_the_error() -> None:
    context, _, _ = aborted(errors.UnknownPath("there is no \ud800"))
    assert context.details == "there is no \\ud800"


def test_a_caller_that_is_gone_is_told_nothing() -> None:
    context = Context()
    with pytest.raises(grpc.RpcError):
        fail(context, grpc.RpcError())
    assert context.code is None
