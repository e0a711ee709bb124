"""Changing what flows through a model: interventions, and what holds them. The twin is in aio."""

from __future__ import annotations

import contextlib
import weakref
from types import TracebackType
from typing import TYPE_CHECKING, Any

from modscope.v1 import hook_service_pb2
from modscope_client import rpcs
from modscope_client.calls import Calls
from modscope_client.convert import request
from modscope_client.errors import ModscopeError, NotFound

if TYPE_CHECKING:
    from modscope_client.renewals import Renewals
    from modscope_client.types import Intervention

__all__ = ["InterventionHandle", "ModelInterventions"]

_held: weakref.WeakKeyDictionary[Calls, set[Renewals]] = weakref.WeakKeyDictionary()
"""What renews the leases of a client's interventions, for as long as the client lives."""


class ModelInterventions:
    """What can be changed on its way through a model."""

    def __init__(self, calls: Calls, name: str) -> None:
        self._calls = calls
        self.name = name

    def intervene(
        self,
        glob: str,
        *,
        hook: str = "forward",
        type: str | type | None = None,
        scale: float | None = None,
        add: Any = None,
        clamp: tuple[float | None, float | None] | None = None,
        zero: bool = False,
        replace: Any = None,
        noise: float | None = None,
        seed: int | None = None,
        index: str = "",
        key: str | None = None,
        calls: int | None = None,
        start: int | None = None,
        stop: int | None = None,
        lease: float = 30,
        persist: bool = False,
    ) -> InterventionHandle:
        """Change a value at each call of the selected modules, until `handle.remove()`; usable in `with`.

        Exactly one of: scale= a number; add= a number or an array; clamp=(low, high); zero=True;
        replace= an array; noise= a standard deviation, with seed=. Arrays are broadcast as torch does.

        hook: "forward" changes what a module gives, "forward_pre" what it gets. index: a part such as
        "[:, -1, :]". key: which tensor of a structured value, such as "0" or "logits"; without it the
        only one. calls: so many at each module. start, stop: steps, stop not included. lease: seconds
        after which it ends where this client is gone; `persist` leaves it until somebody removes it.
        A value that it does not fit passes unchanged, and `handle.info()` tells why.
        """
        from modscope_client import interventions
        from modscope_client.channel import BULK_BYTES
        from modscope_client.transfer import tensor_frames

        actions = {
            **{"scale": scale, "add": add, "clamp": clamp},
            **{"zero": zero, "replace": replace, "noise": noise},
        }
        first, tensor = interventions.intervene(
            self.name, glob, type, hook, actions, seed, index, key, calls, start, stop, lease, persist
        )
        answer = self._calls.upload(
            interventions.INTERVENE,
            tensor_frames(first, tensor),
            bulk=tensor is not None and len(tensor.data) > BULK_BYTES,
        )
        made = interventions.intervention(answer.intervention)
        return InterventionHandle(self._calls, made, tuple(answer.notes))

    def interventions(self) -> list[Intervention]:
        """Those that have not ended, whoever made them, in the order of their making."""
        return _listed(self._calls, self.name, ())

    def unhook(self, *ids: str) -> list[Intervention]:
        """End interventions and watches of these ids, or all interventions; tells those that it has ended.

        Raises NotFound (UNKNOWN_INTERVENTION), and ends no intervention then.
        """
        from modscope_client import interventions

        for watch in filter(interventions.is_watch, ids):
            asked = request(hook_service_pb2.StopWatchRequest, watch_id=watch)
            self._calls.unary(rpcs.STOP_WATCH, asked)
        others = [id for id in ids if not interventions.is_watch(id)]
        return _removed(self._calls, self.name, others) if others or not ids else []


class InterventionHandle:
    """An intervention that was made, until `remove`, or until its `with` is left.

    Its lease is renewed in the background until then, or until the client is closed or forgotten.
    """

    def __init__(self, calls: Calls, made: Intervention, notes: tuple[str, ...]) -> None:
        self._calls = calls
        self._model = made.model
        self.id = made.id
        """Identifies it on its server."""
        self.made = made
        """What it was when it was made."""
        self.notes = notes
        """What there was to say then."""
        self._renewals = None if made.lease is None else _renewing(calls, made)

    def __repr__(self) -> str:
        return f"<InterventionHandle {self.id!r}: {self.made.action} at {self.made.path!r}>"

    def __enter__(self) -> InterventionHandle:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove it, also where the block raised; a failure to do so does not hide what it raised."""
        with contextlib.suppress(*((ModscopeError,) if error is not None else ())):
            self.remove()

    def info(self) -> Intervention:
        """What it is now, also where it has ended."""
        (found,) = _listed(self._calls, self._model, (self.id,))
        return found

    def remove(self) -> None:
        """End it: no later call is changed. Idempotent."""
        if self._renewals is not None:
            self._renewals.drop()
            _held.get(self._calls, set()).discard(self._renewals)
        with contextlib.suppress(NotFound):
            _removed(self._calls, self._model, [self.id])


def _renewing(calls: Calls, made: Intervention) -> Renewals:
    from modscope.v1.lease_service_pb2 import RenewLeaseRequest
    from modscope_client.renewals import Renewals
    from modscope_client.run_control import RENEW_LEASE

    living = weakref.ref(calls)

    def renew(lease: str) -> object:
        client = living()
        return client and client.unary(RENEW_LEASE, RenewLeaseRequest(id=lease))

    assert made.lease is not None
    renewals = Renewals(renew)
    renewals.take(made.lease)
    _held.setdefault(calls, set()).add(renewals)
    return renewals


def _listed(calls: Calls, model: str, ids: tuple[str, ...]) -> list[Intervention]:
    from modscope_client import interventions

    asked = request(hook_service_pb2.ListInterventionsRequest, model=model, ids=ids)
    answer = calls.unary(interventions.LIST_INTERVENTIONS, asked)
    return list(map(interventions.intervention, answer.interventions))


def _removed(calls: Calls, model: str, ids: list[str]) -> list[Intervention]:
    from modscope_client import interventions

    asked = request(hook_service_pb2.RemoveInterventionsRequest, model=model, ids=ids, all=not ids)
    answer = calls.unary(interventions.REMOVE_INTERVENTIONS, asked)
    return list(map(interventions.intervention, answer.interventions))
