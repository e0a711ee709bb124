"""Snapshots on the wire: the rpcs of SnapshotService, and its answers as records."""

from __future__ import annotations

from modscope.v1 import snapshot_pb2, snapshot_service_pb2
from modscope_client import convert
from modscope_client.rpcs import plain
from modscope_client.types import Snapshot

__all__ = ["DROP_SNAPSHOT", "LIST_SNAPSHOTS", "RESTORE_SNAPSHOT", "SAVE_SNAPSHOT", "snapshot"]

_SERVICE = "modscope.v1.SnapshotService"

SAVE_SNAPSHOT = plain(
    _SERVICE, snapshot_service_pb2.SaveSnapshotRequest, snapshot_service_pb2.SaveSnapshotResponse
)
LIST_SNAPSHOTS = plain(
    _SERVICE,
    snapshot_service_pb2.ListSnapshotsRequest,
    snapshot_service_pb2.ListSnapshotsResponse,
    at_once=True,
)
RESTORE_SNAPSHOT = plain(
    _SERVICE, snapshot_service_pb2.RestoreSnapshotRequest, snapshot_service_pb2.RestoreSnapshotResponse
)
DROP_SNAPSHOT = plain(
    _SERVICE,
    snapshot_service_pb2.DropSnapshotRequest,
    snapshot_service_pb2.DropSnapshotResponse,
    at_once=True,
)


def snapshot(m: snapshot_pb2.Snapshot) -> Snapshot:
    """A snapshot's record."""
    return Snapshot(
        m.name,
        m.model,
        m.step,
        convert.seconds(m.time),
        m.bytes,
        m.directory,
        tuple(m.parts),
        m.who,
        tuple(m.notes),
    )
