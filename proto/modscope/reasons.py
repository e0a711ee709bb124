"""Stable error reasons, each with the gRPC status under which it travels."""

from __future__ import annotations

__all__ = ["DOMAIN", "REASONS", "status_of"]

DOMAIN = "modscope"
"""Domain of google.rpc.ErrorInfo."""

REASONS: dict[str, str] = {
    "UNKNOWN_MODEL": "NOT_FOUND",
    "UNKNOWN_PATH": "NOT_FOUND",
    "NO_MATCH": "NOT_FOUND",
    "BAD_GLOB": "INVALID_ARGUMENT",
    "BAD_REQUEST": "INVALID_ARGUMENT",
    "UNKNOWN_SCHEME": "INVALID_ARGUMENT",
    "UNKNOWN_DTYPE": "INVALID_ARGUMENT",
    "SHAPE_MISMATCH": "INVALID_ARGUMENT",
    "DTYPE_MISMATCH": "INVALID_ARGUMENT",
    "NOT_FINITE": "INVALID_ARGUMENT",
    "SCHEME_UNSUITABLE": "INVALID_ARGUMENT",
    "FORWARD_RAISED": "INVALID_ARGUMENT",
    "NO_GRAD": "FAILED_PRECONDITION",
    "NOT_MATERIALIZED": "FAILED_PRECONDITION",
    "KEYS_MISMATCH": "FAILED_PRECONDITION",
    "STALE_DIGEST": "FAILED_PRECONDITION",
    "WOULD_BREAK_TRAINING": "FAILED_PRECONDITION",
    "BAD_TOKEN": "UNAUTHENTICATED",
    "VIEWER_TOKEN": "PERMISSION_DENIED",
    "READ_ONLY_SERVER": "PERMISSION_DENIED",
    "NO_SAFE_POINT": "DEADLINE_EXCEEDED",
    "LIMIT": "RESOURCE_EXHAUSTED",
    "CLOSED": "UNAVAILABLE",
    "UNREACHABLE": "UNAVAILABLE",
    "INTERNAL": "INTERNAL",
}
"""Reason -> name of its status code."""


def status_of(reason: str) -> str:
    """Name of the status code for a reason; INTERNAL for one that is not in the table."""
    return REASONS.get(reason, "INTERNAL")
