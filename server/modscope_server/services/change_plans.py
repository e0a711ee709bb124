"""What requests of changes ask for, as plans: the same for a call of its own and within a transaction."""

from __future__ import annotations

from modscope.tensor import TensorData
from modscope.v1 import parameter_service_pb2 as messages
from modscope_server.inspection.changes import Plan
from modscope_server.inspection.edits import check_announced, checked_source, plan_write
from modscope_server.inspection.freezing import plan_freeze, plan_unfreeze
from modscope_server.inspection.parameters import find_tensor
from modscope_server.reinit import RESET_PARAMETERS, plan_reinitialize
from modscope_server.runtime.registry import Registered
from modscope_server.services import convert
from modscope_server.services.serving import Serving
from modscope_server.services.uploads import Uploads

__all__ = ["Write", "freeze_plan", "reinitialize_plan", "unfreeze_plan"]


class Write:
    """A write whose bytes are still to come. Refuses at once what can be refused without them."""

    def __init__(
        self, serving: Serving, registered: Registered, request: messages.WriteTensorRequest, uploads: Uploads
    ) -> None:
        self._registered = registered
        self._request = request
        self._target = serving.safepoint.peek(lambda: find_tensor(registered.root, request.path)).value
        self._fill = convert.scalar(request.fill, "fill") if request.HasField("fill") else None
        self._place: int | None = None
        if request.HasField("spec"):
            dtype, shape, size = convert.spec_from(request.spec, "spec")
            check_announced(self._target, dtype, shape, cast=request.cast)
            self._place = uploads.count
            uploads.begin(request.path, dtype, shape, size)

    def plan(self, received: list[TensorData]) -> Plan:
        """The plan, once all bytes are there. Raises for values that cannot be written."""
        request, root = self._request, self._registered.root
        data = None if self._place is None else received[self._place]
        source = checked_source(self._target, data, self._fill, request.cast, request.allow_non_finite)
        return lambda: plan_write(root, request.path, source)


def freeze_plan(serving: Serving, registered: Registered, request: messages.FreezeRequest) -> Plan:
    """Plans a freeze."""
    return lambda: plan_freeze(
        registered.root,
        request.glob,
        request.type,
        registered.groups(),
        force=request.force,
        norm_stats=request.norm_stats,
        program=registered.program,
        scaled=serving.scaled(),
        holds=serving.norm_holds,
    )


def unfreeze_plan(serving: Serving, registered: Registered, request: messages.UnfreezeRequest) -> Plan:
    """Plans an unfreeze."""
    return lambda: plan_unfreeze(
        registered.root,
        request.glob,
        request.type,
        registered.groups(),
        program=registered.program,
        holds=serving.norm_holds,
    )


def reinitialize_plan(
    serving: Serving, registered: Registered, request: messages.ReinitializeRequest
) -> Plan:
    """Plans a reinitialisation. Raises BadRequest for an argument that is none."""
    arguments = {
        name: convert.scalar(value, f"arguments.{name}") for name, value in request.arguments.items()
    }
    return lambda: plan_reinitialize(
        registered.root,
        request.glob if request.HasField("glob") else "*",
        request.type,
        request.parameter if request.HasField("parameter") else None,
        request.scheme or RESET_PARAMETERS,
        arguments,
        request.seed if request.HasField("seed") else None,
        groups=registered.groups(),
        keep_optimizer_state=request.keep_optimizer_state,
    )
