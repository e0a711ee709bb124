"""The file of a recording: a header that a person can read, then the watch's messages, each with a checksum.

    zcat FILE | head -2         tells what it is

All of it is one gzip stream. In it: the line `modscope recording`; a line of JSON (`version` of this format,
what was recorded, and how); then per message a length and a CRC-32, both 32 bits and little-endian, and
so many bytes of a modscope.v1.WatchResponse. A length of 0 ends it; its second number counts the messages.
"""

from __future__ import annotations

import gzip
import json
import os
import struct
import time
import zlib
from typing import Any

from modscope_client.errors import InvalidArgument

__all__ = ["VERSION", "RecordingReader", "RecordingWriter"]

VERSION = 1
"""Of the format. A reader refuses a later one."""

_MAGIC = b"modscope recording\n"
_LENGTHS = struct.Struct("<II")
_LONGEST_HEADER, _LONGEST_MESSAGE = 1 << 20, 16 << 20
_FLUSH_SECONDS = 1.0
"""How often it writes through, while messages come."""


class RecordingWriter:
    """Writes one file, from its first message on; `finish` says that it is whole."""

    def __init__(self, file: str | os.PathLike[str], header: dict[str, Any]) -> None:
        """Create the file, or replace it. Raises OSError."""
        self._raw = open(file, "wb")  # noqa: SIM115 - closed by close
        self._gzip = gzip.GzipFile("", "wb", fileobj=self._raw, mtime=0)
        self._gzip.write(_MAGIC + json.dumps({"version": VERSION, **header}).encode() + b"\n")
        self._count = 0
        self._flushed = 0.0

    def write(self, message: bytes) -> None:
        """One message, that has at least a byte."""
        self._gzip.write(_LENGTHS.pack(len(message), zlib.crc32(message)))
        self._gzip.write(message)
        self._count += 1
        now = time.monotonic()
        if now - self._flushed > _FLUSH_SECONDS:
            self._gzip.flush()
            self._flushed = now

    def finish(self) -> None:
        """No more will come."""
        self._gzip.write(_LENGTHS.pack(0, self._count & 0xFFFFFFFF))

    def close(self) -> None:
        """Close the file. Idempotent."""
        try:
            self._gzip.close()
        finally:
            self._raw.close()


class RecordingReader:
    """Reads one file. Every fault is an InvalidArgument that says which."""

    def __init__(self, file: str | os.PathLike[str]) -> None:
        """Read its header.

        Raises OSError, InvalidArgument (NOT_A_RECORDING, LATER_VERSION, TRUNCATED, DAMAGED).
        """
        self.file = os.fspath(file)
        """Its path."""
        self._gzip = gzip.GzipFile(self.file, "rb")
        self._count = 0
        self._ended = False
        try:
            self.header = self._header()
            """What was recorded, and how."""
        except BaseException:
            self.close()
            raise

    def read(self) -> bytes | None:
        """The next message; None at the end, ever again."""
        if self._ended:
            return None
        length, checksum = _LENGTHS.unpack(self._exactly(_LENGTHS.size))
        if length == 0:
            if checksum != self._count & 0xFFFFFFFF:
                raise self._damaged(f"it ends after {self._count} messages and says {checksum}")
            # Reading on has gzip check the whole of it, the header included.
            if self._guarded(lambda: self._gzip.read(1)):
                raise self._damaged("it goes on behind its end")
            self._ended = True
            return None
        if length > _LONGEST_MESSAGE:
            raise self._damaged(f"a message of {length:,} bytes")
        message = self._exactly(length)
        if zlib.crc32(message) != checksum:
            raise self._damaged("the checksum is another")
        self._count += 1
        return message

    def close(self) -> None:
        """Close the file. Idempotent."""
        self._gzip.close()

    def _header(self) -> dict[str, Any]:
        try:
            is_ours = self._gzip.read(len(_MAGIC)) == _MAGIC
        except (gzip.BadGzipFile, EOFError, zlib.error):
            is_ours = False
        if not is_ours:
            raise InvalidArgument(
                f"{self.file!r} is no recording of modscope",
                reason="NOT_A_RECORDING",
                hint="'modscope record FILE' makes one",
            )
        try:
            line = self._guarded(lambda: self._gzip.readline(_LONGEST_HEADER))
            header = json.loads(line)
            version = int(header["version"])
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, InvalidArgument):
                raise
            raise self._damaged("its header cannot be read") from None
        if version > VERSION:
            raise InvalidArgument(
                f"{self.file!r} has version {version} of the format; this modscope reads up to {VERSION}",
                reason="LATER_VERSION",
                hint=f"use modscope {header.get('modscope', '')} or newer",
            )
        return dict(header)

    def _exactly(self, size: int) -> bytes:
        data = self._guarded(lambda: self._gzip.read(size))
        if len(data) < size:
            raise self._truncated()
        return data

    def _guarded(self, read: Any) -> bytes:
        try:
            data: bytes = read()
        except EOFError:
            raise self._truncated() from None
        except (gzip.BadGzipFile, zlib.error) as error:
            raise self._damaged(str(error)) from None
        return data

    def _truncated(self) -> InvalidArgument:
        return InvalidArgument(
            f"{self.file!r} breaks off after {self._count:,} messages",
            reason="TRUNCATED",
            hint="the recorder was killed, or the copy is not whole; what is before that is good",
        )

    def _damaged(self, what: str) -> InvalidArgument:
        return InvalidArgument(
            f"{self.file!r} is damaged after {self._count:,} messages: {what}",
            reason="DAMAGED",
            hint="copy it anew; what is before that is good",
        )
