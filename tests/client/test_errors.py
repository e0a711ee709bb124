"""Errors: one class per status, with the reason, hint and details that the server sent."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from modscope.reasons import REASONS
from modscope_client import errors


class Raised(grpc.RpcError):
    """What grpc raises: a status code, a text and trailing metadata."""

    def __init__(self, code: grpc.StatusCode, text: str = "", trailers: Any = ()) -> None:
        self._code, self._text, self._trailers = code, text, trailers

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._text

    def trailing_metadata(self) -> Any:
        return self._trailers


def packed(*parts: Message, message: str = "in full") -> tuple[tuple[str, bytes], ...]:
    status = status_pb2.Status(code=3, message=message)
    for part in parts:
        item = any_pb2.Any()
        item.Pack(part)
        status.details.append(item)
    return (("other", b"x"), ("grpc-status-details-bin", status.SerializeToString()))


CLASSES = {
    "NOT_FOUND": errors.NotFound,
    "INVALID_ARGUMENT": errors.InvalidArgument,
    "PERMISSION_DENIED": errors.PermissionDenied,
    "UNAUTHENTICATED": errors.Unauthenticated,
    "FAILED_PRECONDITION": errors.FailedPrecondition,
    "DEADLINE_EXCEEDED": errors.DeadlineExceeded,
    "RESOURCE_EXHAUSTED": errors.ResourceExhausted,
    "UNAVAILABLE": errors.Unavailable,
    "INTERNAL": errors.Internal,
}


def test_every_status_of_the_contract_has_its_class() -> None:
    assert set(REASONS.values()) == set(CLASSES)
    for code, kind in CLASSES.items():
        assert errors.error_for(code) is kind
        assert kind.code == code
        assert issubclass(kind, errors.ModscopeError)


@pytest.mark.parametrize("code", list(grpc.StatusCode))
def test_every_status_of_grpc_becomes_an_error_of_the_tree(code: grpc.StatusCode) -> None:
    error = errors.from_rpc(Raised(code, "text"), "unix:/s")
    assert type(error) in CLASSES.values()
    assert "text" in str(error) or code is grpc.StatusCode.DEADLINE_EXCEEDED


def test_reason_hint_and_details_are_the_servers() -> None:
    info = error_details_pb2.ErrorInfo(
        reason="SHAPE_MISMATCH", domain="modscope", metadata={"hint": "reshape it", "expected": "[3]"}
    )
    wrong = error_details_pb2.BadRequest.FieldViolation(field="spec.shape", description="wrong")
    trailers = packed(info, error_details_pb2.BadRequest(field_violations=[wrong]))
    error = errors.from_rpc(Raised(grpc.StatusCode.INVALID_ARGUMENT, "cut sho...", trailers), "unix:/s")
    assert isinstance(error, errors.InvalidArgument)
    assert (error.reason, error.hint, error.message) == ("SHAPE_MISMATCH", "reshape it", "in full")
    assert error.details == {"expected": "[3]", "field": "spec.shape"}
    assert str(error) == "in full (reshape it)"


@pytest.mark.parametrize(
    "trailers",
    [
        None,
        (),
        packed(),
        packed(error_details_pb2.ErrorInfo(reason="QUOTA", domain="elsewhere")),
        (("grpc-status-details-bin", b"\xff\xff no status"),),
    ],
)
def test_a_status_without_our_details_is_explained_as_grpcs_own(trailers: Any) -> None:
    error = errors.from_rpc(Raised(grpc.StatusCode.UNAVAILABLE, "refused", trailers), "host:1")
    assert (type(error), error.reason, error.details) == (errors.Unavailable, "UNREACHABLE", {})
    assert "host:1" in error.message and "refused" in error.message
    assert "modscope ps" in error.hint


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("last error: UNKNOWN: x: Tls handshake failed: CERTIFICATE_VERIFY_FAILED: unable", "CA file"),
        ("last error: UNAUTHENTICATED: Hostname Verification Check failed.", "another name"),
        ("last error: UNKNOWN: x: SSL routines:OPENSSL_internal:WRONG_VERSION_NUMBER", "no TLS"),
        ("Socket closed", "does it speak TLS"),
        ("last error: UNKNOWN: connect failed: error: No such file or directory", "modscope ps"),
    ],
)
def test_the_hint_is_of_what_grpc_says(text: str, told: str) -> None:
    error = errors.from_rpc(Raised(grpc.StatusCode.UNAVAILABLE, text), "host:1")
    assert told in error.hint and "last error" not in error.message


def test_a_server_that_knows_another_contract_is_named() -> None:
    error = errors.from_rpc(Raised(grpc.StatusCode.UNIMPLEMENTED, "Method not found!"), "host:1")
    assert isinstance(error, errors.Internal)
    assert "host:1" in error.message and "upgrade" in error.hint


def test_errors_are_pickled_and_copied_whole() -> None:
    error = errors.NotFound("no 'x'", reason="UNKNOWN_PATH", hint="try 'y'", details={"field": "path"})
    for twin in (pickle.loads(pickle.dumps(error)), copy.deepcopy(error)):
        assert type(twin) is errors.NotFound
        assert vars(twin) == vars(error)


def test_errors_are_what_python_calls_them_too() -> None:
    assert issubclass(errors.DeadlineExceeded, TimeoutError)
    assert issubclass(errors.Unavailable, ConnectionError)
    assert issubclass(errors.InvalidArgument, ValueError)


def test_defaults() -> None:
    error = errors.NotFound("text")
    assert (str(error), error.reason, error.hint, error.details) == ("text", "NOT_FOUND", "", {})
    assert errors.InvalidArgument("text").reason == "BAD_REQUEST"
    assert errors.no_safe_point(2).reason == "NO_SAFE_POINT"
    assert "2 s" in str(errors.no_safe_point(2)) and "2 s" in str(errors.stalled(2))
