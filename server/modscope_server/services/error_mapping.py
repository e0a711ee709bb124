"""Exceptions -> gRPC status, stable reason, and a message that says what to do next.

What travels fits into the 8 KiB of trailers that gRPC admits by default: long texts are cut, and
never is a traceback among them.
"""

from __future__ import annotations

import logging
import re
from typing import Any, NoReturn
from urllib.parse import quote, unquote_to_bytes

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from modscope.reasons import DOMAIN, status_of
from modscope_server.errors import ModscopeServerError

__all__ = ["DETAILS_KEY", "fail", "rich_status"]

DETAILS_KEY = "grpc-status-details-bin"
"""Trailer that carries the serialised google.rpc.Status."""

_UNCHANGED = " !\"#$&'()*+,/:;<=>?@[]^_`{|}~\\"
_SHORT_MESSAGE, _LONG_MESSAGE, _HINT, _DETAILS, _VIOLATION = 1500, 2600, 500, 500, 300
_log = logging.getLogger("modscope_server")


def fail(context: Any, error: BaseException) -> NoReturn:
    """End the call of a servicer context with the status of an error. Always raises."""
    if isinstance(error, grpc.RpcError):
        raise error
    status = rich_status(error)
    context.set_trailing_metadata(((DETAILS_KEY, status.SerializeToString()),))
    context.abort(_code(status), _cut(status.message, _SHORT_MESSAGE, percent_encoded=True))
    raise AssertionError("abort always raises")


def rich_status(error: BaseException) -> status_pb2.Status:
    """The google.rpc.Status of an error: code, message, ErrorInfo, and BadRequest where an argument is wrong.

    An error that is none of ours becomes INTERNAL with its type and message; its traceback goes to
    the log alone.
    """
    if isinstance(error, ModscopeServerError):
        reason, hint, field, details = error.reason, error.hint, error.field, error.details
        message = error.message
    else:
        _log.error("an unexpected error in a call", exc_info=error)
        reason, field, details = "INTERNAL", "", {}
        message = f"{type(error).__name__}: {_text_of(error)}"
        hint = "this is a fault of the server: its log has the traceback"
    message = _cut(message, _LONG_MESSAGE)
    metadata = {"hint": _cut(hint, _HINT)}
    room = _DETAILS
    for key, value in details.items():
        kept = _cut(value, room)
        room -= len(key) + len(kept.encode())
        if room >= 0:
            metadata[key] = kept
    parts: list[Message] = [error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN, metadata=metadata)]
    if field:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=field, description=_cut(message, _VIOLATION)
        )
        parts.append(error_details_pb2.BadRequest(field_violations=[violation]))
    status = status_pb2.Status(code=getattr(grpc.StatusCode, status_of(reason)).value[0], message=message)
    for part in parts:
        packed = any_pb2.Any()
        packed.Pack(part)
        status.details.append(packed)
    return status


def _code(status: status_pb2.Status) -> grpc.StatusCode:
    return next(code for code in grpc.StatusCode if code.value[0] == status.code)


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return "its message cannot be made"


def _cut(text: str, limit: int, *, percent_encoded: bool = False) -> str:
    """The text, or its beginning where it takes more than `limit` bytes on the wire."""
    whole = text.encode("utf-8", "backslashreplace")
    wire = quote(whole, safe=_UNCHANGED).encode() if percent_encoded else whole
    if len(wire) <= limit:
        return whole.decode()
    kept = wire[: max(0, limit - 40)]
    if percent_encoded:
        kept = unquote_to_bytes(re.sub(rb"%[0-9A-F]?$", b"", kept))
    beginning = kept.decode("utf-8", "ignore")
    return f"{beginning}... ({len(whole.decode()) - len(beginning)} more characters)"
