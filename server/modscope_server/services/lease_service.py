"""LeaseService: renewing and releasing what is held by a lease."""

from __future__ import annotations

from modscope.v1 import lease_service_pb2
from modscope_server.services import run_messages
from modscope_server.services.auth import changes
from modscope_server.services.call import Call
from modscope_server.services.serving import Serving

__all__ = ["LeaseServicer"]


class LeaseServicer:
    """Translates LeaseService's calls."""

    def __init__(self, serving: Serving) -> None:
        self._leases = serving.leases

    @changes
    def renew_lease(
        self, request: lease_service_pb2.RenewLeaseRequest, call: Call
    ) -> lease_service_pb2.RenewLeaseResponse:
        """Let a lease hold for its seconds from now."""
        lease = self._leases.renew(request.id)
        return lease_service_pb2.RenewLeaseResponse(lease=run_messages.lease(lease))

    @changes
    def release_lease(
        self, request: lease_service_pb2.ReleaseLeaseRequest, call: Call
    ) -> lease_service_pb2.ReleaseLeaseResponse:
        """End a lease, and with it what it holds."""
        self._leases.release(request.id, call.who)
        return lease_service_pb2.ReleaseLeaseResponse()
