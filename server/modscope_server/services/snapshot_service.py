"""SnapshotService: saving a whole run at one step, and going back to it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from modscope.v1 import snapshot_pb2
from modscope.v1 import snapshot_service_pb2 as messages
from modscope_server.errors import NoSafePoint
from modscope_server.inspection.changes import Change
from modscope_server.inspection.snapshot import Image, Run, take
from modscope_server.inspection.snapshot_records import SnapshotRecord
from modscope_server.inspection.snapshot_restore import plan_restore
from modscope_server.runtime.safepoint import Place
from modscope_server.services import convert
from modscope_server.services.auth import changes
from modscope_server.services.call import Call
from modscope_server.services.changing import operation as operation_message
from modscope_server.services.serving import Serving

__all__ = ["SnapshotServicer"]

_PLACES: dict[str | None, str] = {
    "optimizer": "right after an optimizer's step",
    "mark": "in scope.step",
    "forward": "where a forward began",
    None: "beside a loop that stood still",
}


class SnapshotServicer:
    """Translates SnapshotService's calls."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    @changes
    def save_snapshot(
        self, request: messages.SaveSnapshotRequest, call: Call
    ) -> messages.SaveSnapshotResponse:
        """Copy the run at the end of an iteration; write it out, where it shall be, on this thread."""
        serving, registered = self._serving, self._serving.registry.get(request.model)
        point = serving.safepoint
        with serving.snapshots.saving(request.name, request.directory, replacing=request.replace) as saving:
            answer = serving.run(
                call, lambda: take(self._run(), point.place, saving.reserve), "write", point.ends_iteration
            )
            image = answer.value
            record = SnapshotRecord(
                name=request.name,
                model=registered.name,
                step=image.step,
                time=time.time(),
                nbytes=image.nbytes,
                parts=image.parts,
                who=call.who,
                notes=(*answer.notes, *image.notes),
            )
            return messages.SaveSnapshotResponse(snapshot=_message(saving.keep(record, image)))

    def list_snapshots(
        self, request: messages.ListSnapshotsRequest, call: Call
    ) -> messages.ListSnapshotsResponse:
        """All that are known."""
        self._serving.registry.get(request.model)
        records = self._serving.snapshots.listed(request.directory)
        return messages.ListSnapshotsResponse(snapshots=map(_message, records))

    @changes
    def restore_snapshot(
        self, request: messages.RestoreSnapshotRequest, call: Call
    ) -> messages.RestoreSnapshotResponse:
        """Put the run back, at the place of an iteration at which it was taken."""
        serving, registered = self._serving, self._serving.registry.get(request.model)
        earlier = serving.operations.earlier(request.options.request_id, "restore_snapshot", registered.name)
        if earlier is not None:  # it took effect, whatever has become of the snapshot since
            return messages.RestoreSnapshotResponse(operation=operation_message(earlier, serving.ledger))
        with serving.snapshots.opened(request.name, request.directory) as (_, image):

            def plan() -> Change:
                change = plan_restore(image, self._run(), registered.name)
                notes = _notes(image, serving.safepoint.place)
                return replace(change, apply=lambda: (*notes, *change.apply()))

            def admits(place: Place | None) -> bool:
                return place == image.place if image.place else serving.safepoint.ends_iteration(place)

            with _told(image.place):
                operation = serving.change(
                    call, registered, "restore_snapshot", plan, request.options, admits=admits
                )
        return messages.RestoreSnapshotResponse(operation=operation)

    @changes
    def drop_snapshot(
        self, request: messages.DropSnapshotRequest, call: Call
    ) -> messages.DropSnapshotResponse:
        """Let one go."""
        self._serving.registry.get(request.model)
        return messages.DropSnapshotResponse(snapshot=_message(self._serving.snapshots.drop(request.name)))

    def _run(self) -> Run:
        serving = self._serving
        return Run(
            models=serving.registry.models,
            optimizers=serving.registry.optimizers(),
            extras=serving.extras,
            holds=serving.norm_holds,
            step_count=lambda: serving.safepoint.step_count,
            set_step_count=serving.safepoint.set_step_count,
        )


@contextmanager
def _told(place: str | None) -> Iterator[None]:
    """Says of a restoration that found no point for which one it waited."""
    try:
        yield
    except NoSafePoint as error:
        if place is None:
            raise
        raise NoSafePoint(
            f"{error.message}; this snapshot was taken {_PLACES[place]}, and is put back there",
            hint="give a longer --timeout, or pause the run and restore then",
        ) from error


def _notes(image: Image, here: Place | None) -> tuple[str, ...]:
    """What the caller should know where the loop does not stand where it stood then."""
    if image.place == here or {image.place, here} == {"mark", None}:
        return ()
    return (
        f"it was taken {_PLACES[image.place]} and is put back {_PLACES[here]}: what the loop does between "
        "the two, such as a scheduler's step or drawing a batch, may be done twice or left out",
    )


def _message(record: SnapshotRecord) -> snapshot_pb2.Snapshot:
    return snapshot_pb2.Snapshot(
        name=record.name,
        model=record.model,
        step=record.step,
        time=convert.timestamp(record.time),
        bytes=record.nbytes,
        directory=record.directory,
        parts=record.parts,
        who=record.who,
        notes=record.notes,
    )
