"""OptimizerService: listing optimizer groups, setting hyper-parameters, giving parameters to an optimizer."""

from __future__ import annotations

from modscope.v1 import optimizer_service_pb2 as messages
from modscope_server.inspection.changes import Change, Plan
from modscope_server.inspection.optimizer_additions import plan_add_to_optimizer
from modscope_server.inspection.optimizer_edits import plan_set_optimizer
from modscope_server.inspection.optimizer_records import optimizer_groups, unheld_parameters
from modscope_server.inspection.records import OptimizerGroup
from modscope_server.inspection.schedulers import Schedulers
from modscope_server.runtime.registry import Registered
from modscope_server.services import optimizer_messages
from modscope_server.services.auth import changes
from modscope_server.services.call import Call
from modscope_server.services.serving import Serving

__all__ = ["OptimizerServicer", "add_to_optimizer_plan", "set_optimizer_plan"]


class OptimizerServicer:
    """Translates OptimizerService's calls."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    def list_optimizers(
        self, request: messages.ListOptimizersRequest, call: Call
    ) -> messages.ListOptimizersResponse:
        """All groups, and the parameters that none holds, at one step."""
        registry = self._serving.registry
        registered = registry.get(request.model)

        def collect() -> tuple[list[OptimizerGroup], list[str]]:
            groups = registered.groups()
            records = optimizer_groups(
                registered.root, groups, registry.models.values(), Schedulers(self._serving.extras)
            )
            return records, unheld_parameters(registered.root, groups)

        answer = self._serving.run(call, collect)
        records, unheld = answer.value
        return messages.ListOptimizersResponse(
            groups=map(optimizer_messages.optimizer_group, records), unheld=unheld, step=answer.step
        )

    @changes
    def set_optimizer(
        self, request: messages.SetOptimizerRequest, call: Call
    ) -> messages.SetOptimizerResponse:
        """Set hyper-parameters."""
        registered = self._serving.registry.get(request.model)
        plan = set_optimizer_plan(self._serving, registered, request)
        operation = self._serving.change(call, registered, "set_optimizer", plan, request.options)
        return messages.SetOptimizerResponse(operation=operation)

    @changes
    def add_to_optimizer(
        self, request: messages.AddToOptimizerRequest, call: Call
    ) -> messages.AddToOptimizerResponse:
        """Give parameters that no optimizer holds to one."""
        registered = self._serving.registry.get(request.model)
        plan = add_to_optimizer_plan(self._serving, registered, request)
        operation = self._serving.change(call, registered, "add_to_optimizer", plan, request.options)
        return messages.AddToOptimizerResponse(operation=operation)


def set_optimizer_plan(
    serving: Serving, registered: Registered, request: messages.SetOptimizerRequest
) -> Plan:
    """What a request asks for, alone or within a transaction. Raises BadRequest."""
    values = optimizer_messages.hyperparameters(request.hyperparameters)
    group = request.group if request.HasField("group") else None

    def plan() -> Change:
        return plan_set_optimizer(
            registered.root,
            registered.groups(),
            values,
            group,
            base_lr=request.base_lr,
            schedulers=Schedulers(serving.extras),
            program=registered.program,
        )

    return plan


def add_to_optimizer_plan(
    serving: Serving, registered: Registered, request: messages.AddToOptimizerRequest
) -> Plan:
    """What a request asks for, alone or within a transaction."""
    group = request.group if request.HasField("group") else None
    return lambda: plan_add_to_optimizer(
        registered.root, registered.groups(), request.glob, group, program=registered.program
    )
