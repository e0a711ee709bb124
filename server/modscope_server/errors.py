"""What can go wrong, sorted by who must act. Each leaf names its reason.

ModscopeServerError
    Refusal                the caller asked for something that is not there or cannot be
        UnknownModel, UnknownPath, NoMatch
        UnknownOperation, UnknownSnapshot, UnknownLease, UnknownBreak
        UnknownIntervention
        BadGlobError, BadExpression, BadRequest, UnknownScheme, UnknownDtype
        ShapeMismatch, DtypeMismatch, NotFinite, SchemeUnsuitable, ForwardRaised
    Precondition           the model is not in a state for it
        NoGrad, NotMaterialized, KeysMismatch, WouldBreakTraining
        StaleDigest, NotUndoable, AlreadyHeld, SnapshotExists, SnapshotMismatch
    Denied                 the caller may not
        BadToken, ViewerToken, ReadOnlyServer
    Busy                   not now
        NoSafePoint, LimitExceeded, Closed
    ConfigurationError     attach was called with something that cannot serve
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "AlreadyHeld",
    "BadExpression",
    "BadGlobError",
    "BadRequest",
    "BadToken",
    "Busy",
    "Closed",
    "ConfigurationError",
    "Denied",
    "DtypeMismatch",
    "ForwardRaised",
    "KeysMismatch",
    "LimitExceeded",
    "ModscopeServerError",
    "NoGrad",
    "NoMatch",
    "NoSafePoint",
    "NotFinite",
    "NotMaterialized",
    "NotUndoable",
    "Precondition",
    "ReadOnlyServer",
    "Refusal",
    "SchemeUnsuitable",
    "ShapeMismatch",
    "SnapshotExists",
    "SnapshotMismatch",
    "StaleDigest",
    "UnknownBreak",
    "UnknownDtype",
    "UnknownIntervention",
    "UnknownLease",
    "UnknownModel",
    "UnknownOperation",
    "UnknownPath",
    "UnknownScheme",
    "UnknownSnapshot",
    "ViewerToken",
    "WouldBreakTraining",
]


class ModscopeServerError(Exception):
    """Base of all errors that modscope raises on purpose.

    `message` says what was wrong, `hint` what to do next, `details` holds more for tools.
    """

    reason: ClassVar[str] = "INTERNAL"

    def __init__(self, message: str, *, hint: str = "", field: str = "", **details: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.field = field
        """The argument that was wrong, by its name in the request; empty where none was."""
        self.details = details


class Refusal(ModscopeServerError):
    """The caller asked for something that is not there or cannot be."""


class UnknownModel(Refusal):
    """No model is registered under that name."""

    reason = "UNKNOWN_MODEL"


class UnknownPath(Refusal):
    """The model has no module, parameter or buffer at that path."""

    reason = "UNKNOWN_PATH"


class NoMatch(Refusal):
    """A glob or type selects nothing where something must be selected."""

    reason = "NO_MATCH"


class UnknownOperation(Refusal):
    """The ledger has no operation of that id."""

    reason = "UNKNOWN_OPERATION"


class UnknownSnapshot(Refusal):
    """No snapshot has that name."""

    reason = "UNKNOWN_SNAPSHOT"


class UnknownLease(Refusal):
    """The lease has ended, or there was none."""

    reason = "UNKNOWN_LEASE"


class UnknownBreak(Refusal):
    """No break has that id."""

    reason = "UNKNOWN_BREAK"


class UnknownIntervention(Refusal):
    """There was no intervention of that id, or it ended long ago."""

    reason = "UNKNOWN_INTERVENTION"


class UnknownWatch(Refusal):
    """There was no watch of that id, or it has ended."""

    reason = "UNKNOWN_WATCH"


class BadGlobError(Refusal):
    """A pattern that is no glob."""

    reason = "BAD_GLOB"


class BadExpression(Refusal):
    """A break condition that is none."""

    reason = "BAD_EXPRESSION"


class BadRequest(Refusal):
    """An argument that has no meaning."""

    reason = "BAD_REQUEST"


class UnknownScheme(Refusal):
    """No initialisation scheme has that name."""

    reason = "UNKNOWN_SCHEME"


class UnknownDtype(Refusal):
    """A dtype that this torch does not have."""

    reason = "UNKNOWN_DTYPE"


class ShapeMismatch(Refusal):
    """A tensor whose shape is not the target's."""

    reason = "SHAPE_MISMATCH"


class DtypeMismatch(Refusal):
    """A tensor whose dtype is not the target's, or cannot be converted without loss."""

    reason = "DTYPE_MISMATCH"


class NotFinite(Refusal):
    """A value that is nan or inf, or would become so."""

    reason = "NOT_FINITE"


class SchemeUnsuitable(Refusal):
    """A scheme that cannot serve one of the selected tensors."""

    reason = "SCHEME_UNSUITABLE"


class ForwardRaised(Refusal):
    """The model raised when it was run."""

    reason = "FORWARD_RAISED"


class Precondition(ModscopeServerError):
    """The model is not in a state for it."""


class NoGrad(Precondition):
    """The parameter has no gradient now."""

    reason = "NO_GRAD"


class NotMaterialized(Precondition):
    """The tensor has no elements that can be read or written."""

    reason = "NOT_MATERIALIZED"


class KeysMismatch(Precondition):
    """A state_dict whose keys are not the model's."""

    reason = "KEYS_MISMATCH"


class WouldBreakTraining(Precondition):
    """A change after which training would raise."""

    reason = "WOULD_BREAK_TRAINING"


class StaleDigest(Precondition):
    """A tensor is no longer what the caller expects."""

    reason = "STALE_DIGEST"


class NotUndoable(Precondition):
    """An operation that cannot be undone any more."""

    reason = "NOT_UNDOABLE"


class AlreadyHeld(Precondition):
    """An optimizer holds the parameter already."""

    reason = "ALREADY_HELD"


class SnapshotExists(Precondition):
    """The name of the snapshot is taken."""

    reason = "SNAPSHOT_EXISTS"


class SnapshotMismatch(Precondition):
    """A snapshot of a model or optimizer that is built differently now."""

    reason = "SNAPSHOT_MISMATCH"


class Denied(ModscopeServerError):
    """The caller may not."""


class BadToken(Denied):
    """No token, or one that this server did not give."""

    reason = "BAD_TOKEN"


class ViewerToken(Denied):
    """A mutating call with the viewer token."""

    reason = "VIEWER_TOKEN"


class ReadOnlyServer(Denied):
    """A mutating call to a server that was attached without writable=True."""

    reason = "READ_ONLY_SERVER"


class Busy(ModscopeServerError):
    """Not now."""


class NoSafePoint(Busy):
    """No step boundary came before the deadline; the request was withdrawn."""

    reason = "NO_SAFE_POINT"


class LimitExceeded(Busy):
    """More than ServerConfig.limits admits."""

    reason = "LIMIT"


class Closed(Busy):
    """The server is closing."""

    reason = "CLOSED"

    def __init__(
        self,
        message: str = "the server is closing",
        *,
        hint: str = "connect to a running one: `modscope ps`",
        field: str = "",
        **details: str,
    ) -> None:
        super().__init__(message, hint=hint, field=field, **details)


class ConfigurationError(ModscopeServerError, ValueError):
    """attach or modscope-server was given something that cannot serve."""

    reason = "BAD_REQUEST"
