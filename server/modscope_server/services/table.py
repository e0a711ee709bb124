"""Which servicer answers which service."""

from __future__ import annotations

from collections.abc import Callable

from google.protobuf.descriptor import ServiceDescriptor

from modscope.v1 import (
    hook_service_pb2,
    lease_service_pb2,
    model_service_pb2,
    operation_service_pb2,
    optimizer_service_pb2,
    parameter_service_pb2,
    run_service_pb2,
    snapshot_service_pb2,
    state_dict_service_pb2,
)
from modscope_server.services.hook_service import HookServicer
from modscope_server.services.lease_service import LeaseServicer
from modscope_server.services.model_service import ModelServicer
from modscope_server.services.operation_service import OperationServicer
from modscope_server.services.optimizer_service import OptimizerServicer
from modscope_server.services.parameter_service import ParameterServicer
from modscope_server.services.run_service import RunServicer
from modscope_server.services.serving import Serving
from modscope_server.services.snapshot_service import SnapshotServicer
from modscope_server.services.state_dict_service import StateDictServicer

__all__ = ["SERVICES"]

SERVICES: tuple[tuple[ServiceDescriptor, Callable[[Serving], object]], ...] = (
    (model_service_pb2.DESCRIPTOR.services_by_name["ModelService"], ModelServicer),
    (parameter_service_pb2.DESCRIPTOR.services_by_name["ParameterService"], ParameterServicer),
    (state_dict_service_pb2.DESCRIPTOR.services_by_name["StateDictService"], StateDictServicer),
    (hook_service_pb2.DESCRIPTOR.services_by_name["HookService"], HookServicer),
    (run_service_pb2.DESCRIPTOR.services_by_name["RunService"], RunServicer),
    (lease_service_pb2.DESCRIPTOR.services_by_name["LeaseService"], LeaseServicer),
    (operation_service_pb2.DESCRIPTOR.services_by_name["OperationService"], OperationServicer),
    (optimizer_service_pb2.DESCRIPTOR.services_by_name["OptimizerService"], OptimizerServicer),
    (snapshot_service_pb2.DESCRIPTOR.services_by_name["SnapshotService"], SnapshotServicer),
)
"""Descriptor of each service, and what makes its servicer."""
