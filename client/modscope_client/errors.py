"""What can go wrong, one class per status that a caller would handle.

ModscopeError
    NotFound               no such model, path or match: correct the name
    InvalidArgument        the arguments have no meaning for this model: correct them
        NoSuchFile         there is no such file here: correct its name
    FailedPrecondition     the model is not in a state for it: bring it there, or ask for less
    Unauthenticated        no token, or a wrong one
    PermissionDenied       the token or the server does not admit it
    DeadlineExceeded       not in time: ask again, or allow more time
    ResourceExhausted      more than the server admits
    Unavailable            no server answers at that address
    Internal               a fault of modscope's own: report it

`reason` is one of modscope.reasons, stable for programs; the text is for people.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from modscope.reasons import DOMAIN

if TYPE_CHECKING:
    import grpc

__all__ = [
    "DeadlineExceeded",
    "FailedPrecondition",
    "Internal",
    "InvalidArgument",
    "ModscopeError",
    "NoSuchFile",
    "NotFound",
    "PermissionDenied",
    "ResourceExhausted",
    "Unauthenticated",
    "Unavailable",
    "error_for",
    "from_rpc",
    "no_safe_point",
    "stalled",
]

_DETAILS_KEY = "grpc-status-details-bin"

_NO_SERVER = "is the process alive that attached? `modscope ps` lists the servers on this host"
_SIGNS = {
    "CERTIFICATE_VERIFY_FAILED": "give tls= the CA file of the authority that signed its certificate",
    "Hostname Verification": "its certificate is for another name: connect by that name",
    "WRONG_VERSION_NUMBER": "it speaks no TLS: leave tls= out",
    "Socket closed": "does it speak TLS? then give tls=True or tls=CA_FILE; or see whether it just closed",
}
"""What grpc's text has in it -> what to do next."""


class ModscopeError(Exception):
    """Base of every error that the client raises on purpose."""

    code: ClassVar[str] = "UNKNOWN"
    """Name of the gRPC status."""

    def __init__(
        self, message: str, *, reason: str = "", hint: str = "", details: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        """What was wrong, with the values shown."""
        self.reason = reason or _DEFAULT_REASONS.get(self.code, self.code)
        """Stable name of what was wrong, such as "SHAPE_MISMATCH"."""
        self.hint = hint
        """What to do next; "" where there is nothing to say."""
        self.details: dict[str, str] = dict(details or {})
        """More for programs, such as the field that was wrong."""

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, self.reason, self.hint, self.details)


class NotFound(ModscopeError):
    """No such model or path, or nothing matches."""

    code = "NOT_FOUND"


class InvalidArgument(ModscopeError, ValueError):
    """An argument has no meaning, or does not fit the model."""

    code = "INVALID_ARGUMENT"


class NoSuchFile(InvalidArgument, FileNotFoundError):
    """A file of this host that is not there."""


class PermissionDenied(ModscopeError):
    """The token's role or the server does not admit the call."""

    code = "PERMISSION_DENIED"


class Unauthenticated(ModscopeError):
    """No token, or one that the server did not give."""

    code = "UNAUTHENTICATED"


class FailedPrecondition(ModscopeError):
    """The model is not in a state for the call."""

    code = "FAILED_PRECONDITION"


class DeadlineExceeded(ModscopeError, TimeoutError):
    """The call was not served in time; a write that ended so never takes effect afterwards."""

    code = "DEADLINE_EXCEEDED"


class ResourceExhausted(ModscopeError):
    """More than the server's limits admit."""

    code = "RESOURCE_EXHAUSTED"


class Unavailable(ModscopeError, ConnectionError):
    """No server answers at the address."""

    code = "UNAVAILABLE"


class Internal(ModscopeError):
    """A fault of modscope's own, on either side."""

    code = "INTERNAL"


_DEFAULT_REASONS = {"UNAVAILABLE": "UNREACHABLE", "INVALID_ARGUMENT": "BAD_REQUEST"}

_BY_CODE: dict[str, type[ModscopeError]] = {
    "OUT_OF_RANGE": InvalidArgument,
    "ALREADY_EXISTS": FailedPrecondition,
    "ABORTED": FailedPrecondition,
    "CANCELLED": Unavailable,
    **{kind.code: kind for kind in ModscopeError.__subclasses__()},
}


def error_for(code: str) -> type[ModscopeError]:
    """The class for a status name; Internal for one that no caller would handle."""
    return _BY_CODE.get(code, Internal)


def from_rpc(error: grpc.RpcError, address: str, *, waited: float | None = None) -> ModscopeError:
    """The error of the tree for what grpc raised on a call to `address`.

    waited: seconds that the call could wait for a step boundary; None where it never does.
    """
    code: str = error.code().name
    text: str = error.details() or ""
    told = _parse(error.trailing_metadata())
    if told is None and code == "DEADLINE_EXCEEDED" and waited is not None:
        # The server says so itself a little before the deadline, unless the answer is late.
        return no_safe_point(waited)
    if told is None:
        text, hint = _explain(code, text, address)
        return error_for(code)(text, hint=hint)
    message, reason, details = told
    hint = details.pop("hint", "")
    return error_for(code)(message or text, reason=reason, hint=hint, details=details)


def no_safe_point(seconds: float) -> DeadlineExceeded:
    """The error of a transfer or a watch that has not begun after so many seconds."""
    return DeadlineExceeded(
        f"nothing came within {seconds:g} s, and the request was withdrawn: "
        "the model came to no step boundary, or its process stands still",
        reason="NO_SAFE_POINT",
        hint="allow more time with connect(timeout=...), or see whether the training process still works",
    )


def stalled(seconds: float) -> DeadlineExceeded:
    """The error of a transfer in which nothing has moved for so many seconds."""
    return DeadlineExceeded(
        f"the transfer stood still for {seconds:g} s, and was ended",
        hint="allow more time with connect(timeout=...)",
    )


def _parse(metadata: Any) -> tuple[str, str, dict[str, str]] | None:
    """Message, reason and details out of the google.rpc.Status in a call's trailing metadata."""
    packed = next((value for key, value in metadata or () if key == _DETAILS_KEY), None)
    if packed is None:
        return None
    from google.protobuf.message import DecodeError
    from google.rpc import error_details_pb2, status_pb2

    reason = ""
    details: dict[str, str] = {}
    try:
        status = status_pb2.Status.FromString(packed)
        for item in status.details:
            info, bad_request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
            if item.Unpack(info) and info.domain == DOMAIN:
                reason = info.reason
                details.update(info.metadata)
            elif item.Unpack(bad_request) and bad_request.field_violations:
                details.setdefault("field", bad_request.field_violations[0].field)
    except DecodeError:
        return None
    return (status.message, reason, details) if reason else None


def _explain(code: str, text: str, address: str) -> tuple[str, str]:
    """Message and hint for a status that did not come from modscope's own code."""
    if code == "UNAVAILABLE":
        hint = next((hint for sign, hint in _SIGNS.items() if sign in text), _NO_SERVER)
        return f"no server answers at {address}: {text.rpartition('error: ')[2]}", hint
    if code == "CANCELLED":
        return f"the call to {address} was cancelled: {text}", "was the client closed meanwhile?"
    if code == "DEADLINE_EXCEEDED":
        return f"no answer from {address} in time", "allow more time with connect(timeout=...)"
    if code == "UNIMPLEMENTED":
        hint = "it is an older modscope, or another service: upgrade it, or correct the address"
        return f"the server at {address} does not know this call: {text}", hint
    return f"{address}: {text}", ""


def _rebuild(
    kind: type[ModscopeError], message: str, reason: str, hint: str, details: dict[str, str]
) -> ModscopeError:
    return kind(message, reason=reason, hint=hint, details=details)
