"""A snapshot as a directory: safetensors and JSON with checksums, there whole or not at all.

    NAME/snapshot.json         what it is, and all that is no tensor
    NAME/tensors.safetensors   the tensors, as any other tool reads them

It is written into a sibling whose name begins with a dot, and renamed when all of it is on the disk.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from modscope_server.errors import (
    BadRequest,
    LimitExceeded,
    SnapshotExists,
    SnapshotMismatch,
    UnknownSnapshot,
)
from modscope_server.inspection.snapshot import Image
from modscope_server.inspection.snapshot_records import SnapshotRecord
from modscope_server.inspection.tensor_table import Row, Table

__all__ = [
    "check_free",
    "is_snapshot",
    "list_snapshots",
    "read_image",
    "read_record",
    "remove_snapshot",
    "write_snapshot",
]

_FORMAT = "modscope-snapshot"
_VERSION = 1
_JSON, _TENSORS = "snapshot.json", "tensors.safetensors"
_CHUNK = 1 << 20
_PLAIN = frozenset(
    ("bool", "uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64", "float16", "bfloat16")
    + ("float32", "float64", "float8_e4m3fn", "float8_e5m2", "complex64")
)
"""The dtypes that a safetensors file can name; others lie in it as bytes, and the JSON tells their dtype."""
_FULL = (errno.ENOSPC, errno.EDQUOT)


def write_snapshot(parent: Path, record: SnapshotRecord, image: Image, *, replacing: bool) -> None:
    """Write a snapshot into `parent`, which is made where it is not there.

    Raises SnapshotExists where the name is taken, unless it is `replacing` a snapshot; LimitExceeded for
    a full disk, BadRequest for a directory that cannot be written. Where it fails nothing is left of it.
    """
    target = parent / record.name
    with _told(parent):
        parent.mkdir(parents=True, exist_ok=True)
        check_free(parent, record.name, replacing=replacing)
        fresh = _sibling(target)
        try:
            fresh.mkdir(mode=0o700)
            tensors = fresh / _TENSORS
            save_file(_blocks(image.table), tensors, metadata={"format": "pt"})
            _settle(tensors)
            _write_json(fresh / _JSON, _content(record, image, tensors))
            _settle(fresh)
            _rename(fresh, target, replacing=replacing)
            _settle(parent)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)


def check_free(parent: Path, name: str, *, replacing: bool) -> None:
    """Raises SnapshotExists where a snapshot of that name cannot be written."""
    target = parent / name
    if not os.path.lexists(target):
        return
    if not is_snapshot(target):
        raise SnapshotExists(
            f"{target} is there, and is no snapshot", hint="choose another name or directory", field="name"
        )
    if not replacing:
        raise SnapshotExists(
            f"there is a snapshot {name!r} in {parent}",
            hint="choose another name, drop it, or give replace=True (--replace)",
            field="name",
        )
    if _strangers(target):
        raise SnapshotExists(
            f"{target} also holds what is not the snapshot's: {', '.join(_strangers(target))}",
            hint="move that away, or choose another name",
            field="name",
        )


def is_snapshot(path: Path) -> bool:
    """Whether there is a directory that was written as a snapshot."""
    return _loaded(path) is not None


def list_snapshots(parent: Path) -> list[SnapshotRecord]:
    """The snapshots right below a directory, oldest first; what else lies there is passed over."""
    with _told(parent):
        names = sorted(entry.name for entry in os.scandir(parent) if not entry.name.startswith("."))
    records = []
    for name in names:
        with contextlib.suppress(UnknownSnapshot, SnapshotMismatch):
            records.append(read_record(parent / name))
    return sorted(records, key=lambda record: record.time)


def read_record(path: Path) -> SnapshotRecord:
    """What is told of a snapshot; its tensors are not read. Raises UnknownSnapshot, SnapshotMismatch."""
    return _record(path, _read_json(path))


def read_image(path: Path) -> Image:
    """A snapshot whole, its checksums verified. Raises UnknownSnapshot, SnapshotMismatch."""
    content = _read_json(path)
    with _damaged(path):
        file, told = path / _TENSORS, content["tensors"]
        if file.stat().st_size != told["bytes"] or _sha256(file) != told["sha256"]:
            raise ValueError(f"{_TENSORS} is not the file that was written")
        loaded = load_file(file)
        blocks = tuple(
            torch.empty(loaded[name].nbytes, dtype=torch.uint8).copy_(
                loaded[name].reshape(-1).view(torch.uint8)
            )
            for name in content["blocks"]
        )
        rows = tuple(
            Row(block, dtype, tuple(shape), tuple(stride), offset, device, shared)
            for block, dtype, shape, stride, offset, device, shared in content["rows"]
        )
        return Image(
            content["run"], Table(rows, blocks, tuple(content["blocks"])), tuple(content["record"]["notes"])
        )


def remove_snapshot(path: Path) -> None:
    """Delete a snapshot.

    Raises UnknownSnapshot for what is none; BadRequest where it cannot be deleted or something else lies
    in its directory.
    """
    if not is_snapshot(path):
        raise _unknown(path)
    with _told(path.parent):
        if strangers := _strangers(path):
            raise BadRequest(
                f"{path} also holds what is not the snapshot's: {', '.join(strangers)}",
                hint="move that away, then drop it again",
                field="name",
            )
        gone = _sibling(path)
        os.rename(path, gone)
        for name in (_TENSORS, _JSON):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(gone / name)
        os.rmdir(gone)


def _strangers(path: Path) -> list[str]:
    return sorted(set(os.listdir(path)) - {_JSON, _TENSORS})


def _rename(fresh: Path, target: Path, *, replacing: bool) -> None:
    check_free(target.parent, target.name, replacing=replacing)
    if not os.path.lexists(target):
        os.rename(fresh, target)
        return
    old = _sibling(target)
    os.rename(target, old)
    try:
        os.rename(fresh, target)
    except OSError:
        os.rename(old, target)
        raise
    remove_snapshot(old)


def _blocks(table: Table) -> dict[str, torch.Tensor]:
    """The blocks by name, each as the tensor that it is where the format can say so."""
    tensors = dict(zip(table.names, table.blocks, strict=True))
    for index, row in enumerate(table.rows):
        view = table.view(index) if row.dtype in _PLAIN and not row.shared else None
        if view is not None and view.is_contiguous():
            tensors[table.names[row.block]] = view
    return tensors


def _content(record: SnapshotRecord, image: Image, tensors: Path) -> dict[str, Any]:
    told = asdict(record)
    del told["directory"]
    return {
        "record": told,
        "torch": torch.__version__,
        "tensors": {"bytes": tensors.stat().st_size, "sha256": _sha256(tensors)},
        "blocks": image.table.names,
        "rows": image.table.rows,
        "run": image.run,
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    text = _canonical(content)
    digest = hashlib.sha256(text.encode()).hexdigest()
    head = f'{{"format": "{_FORMAT}", "version": {_VERSION}, "sha256": "{digest}",\n"content": '
    with open(path, "w", encoding="utf-8") as file:
        file.write(f"{head}{text}}}\n")
    _settle(path)


def _loaded(path: Path) -> dict[str, Any] | None:
    """The JSON of a snapshot, whatever is told in it; None for what is no snapshot."""
    try:
        with open(path / _JSON, encoding="utf-8") as file:
            whole: dict[str, Any] = json.load(file)
        return whole if not path.is_symlink() and whole.get("format") == _FORMAT else None
    except (OSError, ValueError, AttributeError):
        return None


def _read_json(path: Path) -> dict[str, Any]:
    whole = _loaded(path)
    if whole is None:
        raise _unknown(path)
    with _damaged(path):
        if whole["version"] != _VERSION:
            raise SnapshotMismatch(
                f"{path} is of format version {whole['version']}, and this modscope reads {_VERSION}",
                hint="restore it with the version of modscope that wrote it",
            )
        content: dict[str, Any] = whole["content"]
        if hashlib.sha256(_canonical(content).encode()).hexdigest() != whole["sha256"]:
            raise ValueError(f"{_JSON} is not the file that was written")
        return content


def _record(path: Path, content: dict[str, Any]) -> SnapshotRecord:
    with _damaged(path):
        told = dict(content["record"])
        record = SnapshotRecord(**told)
        return replace(
            record,
            name=path.name,
            directory=str(path.parent),
            parts=tuple(record.parts),
            notes=tuple(record.notes),
        )


def _canonical(content: Any) -> str:
    return json.dumps(content, allow_nan=False, sort_keys=True, separators=(",", ":"))


def _sha256(path: Path) -> str:
    hasher = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            hasher.update(chunk)
    return hasher.hexdigest()


def _sibling(target: Path) -> Path:
    return target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}")


def _settle(path: Path) -> None:
    """Have a file or directory on the disk before what comes next."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unknown(path: Path) -> UnknownSnapshot:
    there = "what is there is no snapshot" if os.path.lexists(path) else "there is nothing"
    return UnknownSnapshot(
        f"no snapshot at {path}: {there}", hint="list them: `modscope snapshot list`", field="name"
    )


@contextlib.contextmanager
def _damaged(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        raise SnapshotMismatch(
            f"the snapshot at {path} is damaged: {error}", hint="restore another one"
        ) from error


@contextlib.contextmanager
def _told(parent: Path) -> Iterator[None]:
    """Faults of the file system as what the caller can do about them."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        if getattr(error, "errno", None) in _FULL or os.strerror(errno.ENOSPC) in str(error):
            raise LimitExceeded(
                f"the disk of {parent} is full: {error}", hint="make room, or give another directory"
            ) from error
        raise BadRequest(
            f"{parent} cannot be used: {error}",
            hint="give a directory that the job may write",
            field="directory",
        ) from error
