"""The snapshots that a server knows: names, those in memory with their bound, those in directories."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from modscope_server.errors import BadRequest, LimitExceeded, SnapshotExists, UnknownSnapshot
from modscope_server.inspection.snapshot import Image
from modscope_server.inspection.snapshot_files import (
    check_free,
    list_snapshots,
    read_image,
    read_record,
    remove_snapshot,
    write_snapshot,
)
from modscope_server.inspection.snapshot_records import SnapshotRecord, check_name

__all__ = ["Saving", "Snapshots", "directory_of"]


@dataclass(frozen=True, slots=True, eq=False)
class _Known:
    record: SnapshotRecord
    image: Image | None
    """None where it lies in a directory."""


class Snapshots:
    """Snapshots by directory and name. All methods may be called from any thread.

    Args:
        limit: bytes of tensors that snapshots may hold in memory, those that are just being written to
            a directory or read from one included.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0
        self._known: dict[tuple[str, str], _Known] = {}
        self._saving: set[tuple[str, str]] = set()
        self._mutex = threading.Lock()

    @contextlib.contextmanager
    def saving(self, name: str, directory: str = "", *, replacing: bool = False) -> Iterator[Saving]:
        """Have the name while a snapshot is taken and kept. Raises BadRequest, SnapshotExists."""
        check_name(name)
        directory = directory_of(directory)
        key = (directory, name)
        if directory:
            check_free(Path(directory), name, replacing=replacing)
        with self._mutex:
            if key in self._saving or (not directory and key in self._known and not replacing):
                raise SnapshotExists(
                    f"there is a snapshot {name!r}" + (", just being saved" if key in self._saving else ""),
                    hint="choose another name, drop it, or give replace=True (--replace)",
                    field="name",
                )
            self._saving.add(key)
        saving = Saving(self, directory, replacing)
        try:
            yield saving
        finally:
            with self._mutex:
                self._saving.discard(key)
            self.give(saving.reserved)

    def add(self, record: SnapshotRecord, image: Image | None) -> None:
        """Know a snapshot; one of the same name in the same place is let go."""
        with self._mutex:
            old = self._known.pop((record.directory, record.name), None)
            self._known[(record.directory, record.name)] = _Known(record, image)
        if old is not None and old.image is not None:
            self.give(old.image.nbytes)

    def listed(self, directory: str = "") -> list[SnapshotRecord]:
        """All that are known, oldest first; those that lie in the directory become known."""
        if directory:
            directory = directory_of(directory)
            found = list_snapshots(Path(directory))
            with self._mutex:
                for key in [key for key in self._known if key[0] == directory]:
                    del self._known[key]
                self._known.update({(directory, one.name): _Known(one, None) for one in found})
        with self._mutex:
            return sorted((known.record for known in self._known.values()), key=lambda one: one.time)

    @contextlib.contextmanager
    def opened(self, name: str, directory: str = "") -> Iterator[tuple[SnapshotRecord, Image]]:
        """A snapshot, in memory while it is needed.

        Raises UnknownSnapshot; SnapshotMismatch for a damaged directory; LimitExceeded.
        """
        if directory:
            record: SnapshotRecord = read_record(Path(directory_of(directory)) / _checked(name))
            image = None
        else:
            known = self._find(name)
            record, image = known.record, known.image
        if image is not None:
            yield record, image
            return
        self.take(record.nbytes)
        try:
            yield record, read_image(Path(record.directory) / record.name)
        finally:
            self.give(record.nbytes)

    def drop(self, name: str) -> SnapshotRecord:
        """Let a snapshot go; one in a directory is deleted there. Raises UnknownSnapshot, BadRequest."""
        known = self._find(name)
        record = known.record
        if record.directory:
            with contextlib.suppress(UnknownSnapshot):  # somebody else has deleted it
                remove_snapshot(Path(record.directory) / record.name)
        with self._mutex:
            gone = self._known.pop((record.directory, record.name), None)
        if gone is not None and gone.image is not None:
            self.give(gone.image.nbytes)
        return record

    def take(self, size: int) -> None:
        """Reserve bytes. Raises LimitExceeded."""
        with self._mutex:
            if self._used + size > self._limit:
                raise LimitExceeded(
                    f"the snapshot takes {size:,} bytes, and {self._limit - self._used:,} of {self._limit:,} "
                    "are free",
                    hint="drop a snapshot, or raise limits.snapshot_bytes in attach",
                )
            self._used += size

    def give(self, size: int) -> None:
        """Return reserved bytes."""
        with self._mutex:
            self._used -= size

    def _find(self, name: str) -> _Known:
        with self._mutex:
            found = [known for (_, other), known in self._known.items() if other == name]
        in_memory = [known for known in found if known.image is not None]
        if in_memory or len(found) == 1:
            return (in_memory or found)[0]
        if found:
            places = ", ".join(known.record.directory for known in found)
            raise BadRequest(
                f"there are several snapshots {name!r}, in {places}",
                hint="name the directory",
                field="directory",
            )
        with self._mutex:
            names = ", ".join(dict.fromkeys(other for _, other in self._known)) or "none"
        raise UnknownSnapshot(
            f"there is no snapshot {name!r}",
            hint=f"known are: {names}; of another directory, give that too",
            field="name",
        )


class Saving:
    """A snapshot that is being taken: reserves its bytes, then keeps it."""

    def __init__(self, snapshots: Snapshots, directory: str, replacing: bool) -> None:
        self.reserved = 0
        self._snapshots = snapshots
        self._directory = directory
        self._replacing = replacing

    def reserve(self, size: int) -> None:
        """Reserve the bytes of its copies. Raises LimitExceeded."""
        self._snapshots.take(size)
        self.reserved += size

    def keep(self, record: SnapshotRecord, image: Image) -> SnapshotRecord:
        """Keep it where it belongs; what is told of it. Raises what `write_snapshot` raises."""
        record = replace(record, directory=self._directory)
        if self._directory:
            write_snapshot(Path(self._directory), record, image, replacing=self._replacing)
            self._snapshots.add(record, None)
        else:
            self._snapshots.add(record, image)
            self.reserved = 0
        return record


def directory_of(directory: str) -> str:
    """The absolute path of a directory on this host; empty stays empty. Raises BadRequest."""
    if "\0" in directory:
        raise BadRequest("a directory has no zero bytes in its name", hint="give a path", field="directory")
    return os.path.abspath(os.path.expanduser(directory)) if directory else ""


def _checked(name: str) -> str:
    check_name(name)
    return name
