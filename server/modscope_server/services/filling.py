"""Messages within a message, written where they are to stand.

To protobuf each message that Python makes is an arena of its own, and so is each repeated field of it, and
each message in it, that is written before it is set. After every 10,000 pieces that arenas let go of, it has
malloc give all that is free back to the system: freed activations among it, which the next training step then
gets again page by page (docs/decisions/0016). What is added here lives in the arena of the message that it is
added to, and has all of its fields set already.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from google.protobuf.message import Message

if TYPE_CHECKING:
    from google.protobuf.internal.containers import RepeatedCompositeFieldContainer

__all__ = ["added"]

M = TypeVar("M", bound=Message)


def added(to: RepeatedCompositeFieldContainer[M], like: M) -> M:
    """A message at the end of a repeated field, to be written: so far it says what `like` says.

    `like` needs something in each repeated field, and each message, that is to be written.
    """
    message = to.add()
    message.MergeFrom(like)
    return message
