"""From hooks to subscribers: bounded queues that never make the training thread wait, unless it is allowed.

A hook publishes a draft to a fan, which only appends it. Whoever has time deals the drafts out to the
subscribers' queues: a reader that wakes, or the hook itself once some have gathered or somebody waits for
the first. What does not fit is dropped and counted, and sequence numbers show the gaps.

A hook that deals them out packs them, too: under Python's lock another thread would stop training for that,
and longer, since it would have to fetch all that the hooks have made from their processor's caches.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable

from modscope_server.runtime.drafts import Draft, DraftValue, HookEvent, HookValue, Item
from modscope_server.runtime.queues import Queues
from modscope_server.runtime.runs import blocks_of
from modscope_server.runtime.subscription import Batch, Counters, Overflow, Reader, Subscription

__all__ = [
    "Batch",
    "Counters",
    "Draft",
    "DraftValue",
    "Fan",
    "HookEvent",
    "HookValue",
    "Item",
    "Overflow",
    "Queues",
    "Reader",
    "Subscription",
]

_SPREAD = 128
"""So many drafts may gather before a hook deals them out."""
_AT_A_TIME = 64
"""More threads than this run no hooks at the same time."""


class Fan:
    """Subscriptions that see the same drafts.

    Args:
        queues: what they share with all others.
        at_once: whether each draft is dealt out as it comes, since it holds tensors.
        pack: gives what subscribers are sent of a draft, or the draft itself where that would have to wait.
    """

    def __init__(
        self, queues: Queues, *, at_once: bool = False, pack: Callable[[Draft], Item] | None = None
    ) -> None:
        self._queues = queues
        self._at_once = at_once
        self._pack = pack
        self._recent: deque[Draft] = deque()
        self._enough: float = 1
        self._subscriptions: tuple[Subscription, ...] = ()
        self._waits = False
        """Whether hooks wait for room."""
        self._is_read = False
        """Whether anybody will need what is packed."""
        self._sure = 0
        """So many drafts may gather that surely find room."""
        self._dealt = -math.inf
        """When a reader has had them dealt out, by the monotonic clock."""

    def add(self, subscription: Subscription) -> None:
        """Let a subscription see what is published from now on."""
        with self._queues.mutex:
            self.spread()
            subscription.source = self
            self._hold((*self._subscriptions, subscription))

    def remove(self, subscription: Subscription) -> None:
        """Let it see no more. Idempotent."""
        with self._queues.mutex:
            self.spread()
            self._hold(tuple(one for one in self._subscriptions if one is not subscription))

    def __len__(self) -> int:
        return len(self._subscriptions)

    def publish(self, draft: Draft) -> None:
        """Hand a draft to the subscriptions. Called by hooks: most of the time this appends it to a list."""
        if self._waits and len(self._recent) >= self._sure:
            self._publish_where_there_is_room(draft)
            return
        self._recent.append(draft)
        if len(self._recent) >= self._enough:
            with self._queues.mutex:
                self.spread(self._pack if self._is_read else None)
            self._tell()

    def deal(self, pause: float) -> None:
        """Deal out what has gathered, unless that was asked for within so many seconds; under the lock."""
        now = time.monotonic()
        if now - self._dealt >= pause:
            self._dealt = now
            self.spread()

    def spread(self, pack: Callable[[Draft], Item] | None = None) -> None:
        """Deal out what has gathered, packed where that is asked for; under the lock."""
        recent = self._recent
        if not recent:
            return
        self._sure = 0
        # Other threads may append meanwhile, and take nothing out.
        drafts: list[Draft] = [recent.popleft() for _ in range(len(recent))]
        items: Iterable[Item] = drafts
        try:
            if pack is not None:
                items = [pack(draft) for draft in drafts]
        except Exception:
            pass  # they go as they are: whoever sends them hears of it
        except BaseException:
            recent.extendleft(reversed(drafts))
            raise
        blocks = blocks_of(items)
        for subscription in self._subscriptions:
            subscription.accept(blocks)
        self._queues.settle()
        self.expect()

    def await_events(self, enough: int) -> int:
        """Somebody waits for so many. Gives how many have gathered; under the lock."""
        if not self._at_once:
            self._is_read = True
            self._enough = min(self._enough, enough)
        return len(self._recent)

    def await_no_more(self, enough: int) -> None:
        """Somebody who has waited for so many does so no more; under the lock."""
        if enough <= self._enough:
            self.expect()

    def expect(self) -> None:
        """Learn how many drafts somebody waits for; under the lock."""
        if self._at_once:
            return
        enough: float = _SPREAD
        if self._waits:
            waiting = [one.backlog.room(0) for one in self._subscriptions if one.overflow == "block"]
            self._sure = min(waiting) - _AT_A_TIME
        self._is_read = False
        for subscription in self._subscriptions:
            reader = subscription.reader
            if reader is not None:
                self._is_read = True
                enough = min(enough, reader.enough)
            if subscription.has_overflowed:
                enough = 1  # the next hook is to tell
        self._enough = enough

    def _hold(self, subscriptions: tuple[Subscription, ...]) -> None:
        self._subscriptions = subscriptions
        self._waits = any(subscription.overflow == "block" for subscription in subscriptions)
        self.expect()

    def _publish_where_there_is_room(self, draft: Draft) -> None:
        """Wait for the subscriptions that have asked for it, then hand them the draft."""
        with self._queues.mutex:
            for subscription in self._subscriptions:
                if subscription.overflow == "block":
                    subscription.await_room(draft.step, blocks_of((draft,))[0].size)
            self._recent.append(draft)
            self.spread()
        self._tell()

    def _tell(self) -> None:
        for subscription in self._subscriptions:
            if subscription.has_overflowed:
                subscription.tell_of_overflow()
