"""The table of reasons: complete, with statuses that exist, and used by every error of ours."""

from __future__ import annotations

import grpc
import pytest

from modscope.reasons import DOMAIN, REASONS, status_of
from modscope_server import errors

CONTRACT = {
    "NOT_FOUND": ["UNKNOWN_MODEL", "UNKNOWN_PATH", "NO_MATCH"],
    "INVALID_ARGUMENT": [
        "BAD_GLOB",
        "UNKNOWN_SCHEME",
        "UNKNOWN_DTYPE",
        "SHAPE_MISMATCH",
        "DTYPE_MISMATCH",
        "NOT_FINITE",
        "SCHEME_UNSUITABLE",
    ],
    "FAILED_PRECONDITION": [
        "NO_GRAD",
        "NOT_MATERIALIZED",
        "KEYS_MISMATCH",
        "STALE_DIGEST",
        "WOULD_BREAK_TRAINING",
    ],
    "UNAUTHENTICATED": ["BAD_TOKEN"],
    "PERMISSION_DENIED": ["VIEWER_TOKEN", "READ_ONLY_SERVER"],
    "DEADLINE_EXCEEDED": ["NO_SAFE_POINT"],
    "RESOURCE_EXHAUSTED": ["LIMIT"],
}
"""What was promised to users: a reason never changes its status."""


def leaves(kind: type[errors.ModscopeServerError]) -> list[type[errors.ModscopeServerError]]:
    """The classes below that have none below themselves."""
    below = kind.__subclasses__()
    return [leaf for child in below for leaf in leaves(child)] if below else [kind]


@pytest.mark.parametrize(("status", "reasons"), CONTRACT.items())
def test_promised_reasons_keep_their_status(status: str, reasons: list[str]) -> None:
    assert {reason: status_of(reason) for reason in reasons} == dict.fromkeys(reasons, status)


@pytest.mark.parametrize("status", sorted(set(REASONS.values())))
def test_statuses_are_those_of_grpc(status: str) -> None:
    assert status in grpc.StatusCode.__members__


@pytest.mark.parametrize("reason", REASONS)
def test_reasons_keep_the_form_that_error_info_asks_for(reason: str) -> None:
    assert reason.isupper()
    assert reason.replace("_", "").isalpha()
    assert len(reason) <= 63


def test_an_unknown_reason_is_internal() -> None:
    assert status_of("NO_SUCH_REASON") == "INTERNAL"


def test_the_domain_is_ours() -> None:
    assert DOMAIN == "modscope"


@pytest.mark.parametrize("leaf", leaves(errors.ModscopeServerError), ids=lambda leaf: str(leaf.__name__))
def test_every_error_of_the_server_names_a_reason_of_the_table(
    leaf: type[errors.ModscopeServerError],
) -> None:
    assert leaf.reason in REASONS
    assert leaf.reason != "INTERNAL"
