"""A state_dict on its way: down into arrays or a file, up from a mapping or a file. Knows no channel."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from modscope import wire
from modscope.tensor import byte_size, chunks
from modscope.v1 import operation_pb2, state_dict_service_pb2, tensor_pb2
from modscope.wire import Frame
from modscope_client import arrays, convert
from modscope_client.errors import Internal, InvalidArgument, NoSuchFile
from modscope_client.memory import Memory
from modscope_client.transfer import Fill, Sink
from modscope_client.types import StateDictKeys, TensorSpec

if TYPE_CHECKING:
    from modscope_client.safetensors_file import Writer
    from modscope_client.types import Array

__all__ = ["ArrayTarget", "Download", "FileTarget", "Progress", "Upload", "keys_of", "open_upload"]

Progress = Callable[[int, int], object]
"""Called with the bytes that have been moved and the bytes that there are, from 0 to the end."""

_EXTRA_STATE = "_extra_state"


class ArrayTarget:
    """Where a download becomes arrays."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self.arrays: dict[str, Array] = {}
        self._targets: list[memoryview] = []

    def start(self, keys: StateDictKeys) -> Sink:
        """Make room for what is to come."""
        specs = [(entry.dtype, entry.shape, entry.nbytes) for entry in keys.entries]
        made = arrays.empties(specs, self._memory)
        self.arrays = {entry.key: array for entry, (array, _) in zip(keys.entries, made, strict=True)}
        self._targets = [target for _, target in made]
        return self._put

    def _put(self, index: int, offset: int, data: memoryview) -> None:
        self._targets[index][offset : offset + len(data)] = data


class FileTarget:
    """Where a download becomes a file, through a writer that its maker commits."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    def start(self, keys: StateDictKeys) -> Sink:
        """Write the header. Raises InvalidArgument for a dtype that safetensors does not have."""
        self._writer.start(keys.entries, {"format": "pt", "modscope_step": str(keys.step)})
        return self._writer.write


class Download:
    """What the messages of a Download make, as they come."""

    def __init__(self, target: ArrayTarget | FileTarget, progress: Progress | None) -> None:
        self._target = target
        self._progress = progress
        self._keys: StateDictKeys | None = None
        self._fill: Fill | None = None
        self.done = 0
        """Bytes that have come."""
        self.total = 0
        """Bytes that are to come; 0 until the first message says it."""

    def take(self, message: Frame[state_dict_service_pb2.DownloadResponse]) -> None:
        """One message. Raises Internal for a stream that contradicts itself."""
        head = message.header
        if self._fill is None:
            self._fill = self._start(head)
        if head.HasField("begins"):
            self._fill.begin(head.begins)
        self._fill.add(message.data)
        self.done = self._fill.done
        if self._progress:
            self._progress(self.done, self.total)

    def finish(self) -> StateDictKeys:
        """The stream has ended: what has come. Raises Internal where something is missing."""
        if self._keys is None or self._fill is None:
            raise Internal("the stream of the state_dict ended before it began")
        self._fill.finish()
        return self._keys

    def _start(self, head: state_dict_service_pb2.DownloadResponse) -> Fill:
        self._keys = StateDictKeys(
            tuple(map(convert.tensor_spec, head.entries)), tuple(head.not_carried), head.step
        )
        self.total = sum(entry.nbytes for entry in self._keys.entries)
        fill = Fill(self._target.start(self._keys))
        fill.expect(entry.nbytes for entry in self._keys.entries)
        return fill


@dataclass(frozen=True)
class Upload:
    """A state_dict that is to be sent."""

    parts: list[tuple[TensorSpec, Callable[[], Iterator[memoryview]]]]
    """Each tensor, and a function that gives its bytes in chunks."""

    @property
    def total(self) -> int:
        """Bytes of all tensors."""
        return sum(spec.nbytes for spec, _ in self.parts)

    def frames(
        self,
        model: str,
        *,
        strict: bool,
        progress: Progress | None,
        options: operation_pb2.ChangeOptions | None = None,
    ) -> Iterator[Frame[state_dict_service_pb2.UploadRequest]]:
        """The requests of one Upload: what follows, then the bytes."""
        request = state_dict_service_pb2.UploadRequest
        entries = [_header(spec) for spec, _ in self.parts]
        yield Frame(
            convert.request(request, model=model, entries=entries, lenient=not strict, options=options)
        )
        more, done, total = request(), 0, self.total
        if progress:
            progress(0, total)
        for index, (spec, parts) in enumerate(self.parts):
            head = request(begins=index)
            if spec.nbytes == 0:
                yield Frame(head)
            for chunk in parts():
                yield Frame(head, chunk)
                head = more
                done += len(chunk)
                if progress:
                    progress(done, total)


def open_upload(source: str | os.PathLike[str] | Mapping[str, Any]) -> AbstractContextManager[Upload]:
    """What a file or a mapping holds; leaving the context closes the file.

    Raises InvalidArgument for a file that is no safetensors file, and for a value that is no tensor;
    NoSuchFile, which is one too, for a file that is not there.
    """
    if isinstance(source, Mapping):
        return nullcontext(Upload([_part(key, value) for key, value in _carried(source)]))
    if isinstance(source, str | os.PathLike):
        return _FileUpload(source)
    raise InvalidArgument(
        f"a {type(source).__name__} is neither a file nor a state_dict",
        hint="give the path of a safetensors file, or a mapping from keys to arrays",
    )


def keys_of(messages: Iterable[state_dict_service_pb2.ListKeysResponse]) -> StateDictKeys:
    """What the messages of a ListKeys tell."""
    entries: list[TensorSpec] = []
    not_carried: list[str] = []
    step = 0
    for message in messages:
        entries += map(convert.tensor_spec, message.entries)
        not_carried += message.not_carried
        step = message.step
    return StateDictKeys(tuple(entries), tuple(not_carried), step)


class _FileUpload:
    """A file that is read while it is sent."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        from modscope_client.safetensors_file import Reader

        try:
            self._reader = Reader(path)
        except FileNotFoundError as error:
            raise NoSuchFile(
                f"there is no file {os.fspath(path)!r} here",
                hint="the path is of this host, not of the server's; correct it",
                details={"field": "file"},
            ) from error

    def __enter__(self) -> Upload:
        reader = self._reader
        return Upload([(stored.spec, partial(reader.chunks, stored)) for stored in reader.tensors])

    def __exit__(self, *exc: object) -> None:
        self._reader.__exit__(None, None, None)


def _carried(source: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The entries that are tensors; extra state is left to those who keep it, as the server leaves it."""
    for key, value in source.items():
        if not isinstance(key, str):
            raise InvalidArgument(f"{key!r} is no key of a state_dict", hint="keys are texts")
        if key.rpartition(".")[2] != _EXTRA_STATE:
            yield key, value


def _part(key: str, value: Any) -> tuple[TensorSpec, Callable[[], Iterator[memoryview]]]:
    try:
        dtype, shape = arrays.spec_of(value)
    except InvalidArgument as error:
        raise InvalidArgument(f"{key}: {error.message}", reason=error.reason, hint=error.hint) from error
    size = byte_size(dtype, shape)
    nbytes = len(value.data) if size is None else size
    return TensorSpec(key, dtype, shape, nbytes), lambda: chunks(arrays.tensor_of(value).data)


def _header(spec: TensorSpec) -> tensor_pb2.TensorHeader:
    return convert.request(
        tensor_pb2.TensorHeader, key=spec.key, spec=wire.spec_of(spec.dtype, spec.shape, spec.nbytes)
    )
