"""StateDictService over raw gRPC: down and up, all of one step, all or nothing."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import grpc
import pytest
import torch
from torch import nn

from modscope.tensor import chunks
from modscope.v1 import state_dict_service_pb2 as messages
from modscope.v1 import tensor_pb2
from modscope.wire import tensor_from
from modscope_server import Limits
from modscope_server.inspection.tensors import from_data, to_data
from tests.plain_models import Buffers, Dtypes, Tied
from tests.server.rpc import admitted, refused, serving, spec, training_loop, until


def downloaded(rpc: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """The first message, and the tensors by key."""
    first, *rest = rpc.Download()
    found: list[bytearray] = []
    for message in rest:
        if message.HasField("begins"):
            assert message.begins == len(found)
            found.append(bytearray())
        assert not message.entries
        found[-1].extend(message.data)
    assert len(found) == len(first.entries)
    return first, {
        entry.key: from_data(tensor_from(entry.spec, bytes(data)))
        for entry, data in zip(first.entries, found, strict=True)
    }


def requests_of(state: Iterable[tuple[str, torch.Tensor]], **fields: Any) -> Iterator[messages.UploadRequest]:
    state = list(state)
    entries = [tensor_pb2.TensorHeader(key=key, spec=spec(tensor)) for key, tensor in state]
    yield messages.UploadRequest(entries=entries, **fields)
    for position, (_, tensor) in enumerate(state):
        begins = messages.UploadRequest(begins=position)
        pieces = list(chunks(to_data(tensor).data, 1 << 16))
        if not pieces:
            yield begins
        for number, piece in enumerate(pieces):
            request = begins if not number else messages.UploadRequest()
            request.data = bytes(piece)
            yield request


def equal(state: dict[str, Any], other: dict[str, Any]) -> bool:
    return list(state) == list(other) and all(
        bytes(to_data(value).data) == bytes(to_data(other[key]).data) and value.dtype == other[key].dtype
        for key, value in state.items()
    )


@pytest.mark.parametrize("make", [Buffers, Dtypes, Tied, lambda: nn.Linear(600, 700)])
def test_down_and_up_again(make: Any) -> None:
    model, other = make(), make()
    with serving(model) as rpc:
        listed = [entry for message in rpc.ListKeys() for entry in message.entries]
        first, state = downloaded(rpc)
        assert [entry.key for entry in listed] == list(model.state_dict())
        assert list(first.entries) == listed
        assert first.step == 0
        assert equal(state, dict(model.state_dict()))
        answer = rpc.Upload(requests_of(other.state_dict().items()))
        assert equal(dict(model.state_dict()), dict(other.state_dict()))
        assert (list(answer.missing_keys), list(answer.unexpected_keys)) == ([], [])
        assert answer.operation.kind == "load_state_dict"
        assert list(answer.operation.paths) == list(model.state_dict())


def test_what_is_not_a_tensor_is_told_and_not_carried() -> None:
    class WithExtra(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"version": 3}

        def set_extra_state(self, state: object) -> None:
            raise AssertionError("nothing was sent for it")

    model = WithExtra(2, 1)
    with serving(model) as rpc:
        (keys,) = rpc.ListKeys()
        assert list(keys.not_carried) == ["_extra_state"]
        first, state = downloaded(rpc)
        assert list(first.not_carried) == ["_extra_state"]
        answer = rpc.Upload(requests_of(state.items()))
        assert (list(answer.missing_keys), list(answer.unexpected_keys)) == ([], [])


def test_a_download_of_a_running_loop_is_of_one_step() -> None:
    model = nn.Sequential(*[nn.Linear(300, 300, bias=False) for _ in range(4)])
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)

    def step() -> None:
        optimizer.zero_grad()
        (model(torch.zeros(1, 300)).sum() + sum(p.sum() for p in model.parameters())).backward()
        optimizer.step()

    with serving(model, optimizer) as rpc, training_loop(step):
        for _ in range(5):
            first, state = downloaded(rpc)
            for key, value in state.items():
                assert torch.equal(value, torch.full((300, 300), -float(first.step))), key


def test_keys_as_strict_and_lenient_loads_see_them() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    before = copy.deepcopy(model.state_dict())
    sent = {"0.weight": torch.ones(2, 2), "9.weight": torch.ones(1)}
    with serving(model) as rpc:
        refusal = refused(lambda: rpc.Upload(requests_of(sent.items())))
        assert (refusal.code, refusal.reason) == ("FAILED_PRECONDITION", "KEYS_MISMATCH")
        for key in ("0.bias", "1.weight", "1.bias", "9.weight"):
            assert key in refusal.message
        assert equal(dict(model.state_dict()), dict(before))
        answer = rpc.Upload(requests_of(sent.items(), lenient=True))
    expected = copy.deepcopy(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
    expected.load_state_dict(before)
    report = expected.load_state_dict(sent, strict=False)
    assert (list(answer.missing_keys), list(answer.unexpected_keys)) == (
        report.missing_keys,
        report.unexpected_keys,
    )
    assert equal(dict(model.state_dict()), dict(expected.state_dict()))
    assert list(answer.operation.paths) == ["0.weight"]


def test_all_wrong_shapes_are_told_at_once_before_the_bytes_are_awaited() -> None:
    never = threading.Event()
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))

    def requests() -> Iterator[messages.UploadRequest]:
        state = model.state_dict()
        state["0.weight"], state["1.bias"] = torch.ones(3, 2), torch.ones(7)
        yield next(requests_of(state.items()))
        never.wait(60)

    with serving(model) as rpc:
        refusal = refused(lambda: rpc.Upload(requests()))
        never.set()
    assert (refusal.code, refusal.reason) == ("INVALID_ARGUMENT", "SHAPE_MISMATCH")
    for shown in ("0.weight", "[3, 2]", "1.bias", "[7]"):
        assert shown in refusal.message


def malformed() -> dict[str, list[messages.UploadRequest]]:
    state = {"weight": torch.ones(1, 2), "bias": torch.ones(1)}
    whole = list(requests_of(state.items()))
    first, weight, bias = whole
    short = messages.UploadRequest(begins=0, data=b"\0" * 7)
    twice = messages.UploadRequest(entries=[first.entries[0], first.entries[0]])
    beyond = messages.UploadRequest(begins=2)
    negative = messages.UploadRequest(begins=-1)
    return {
        "too few bytes": [first, short, bias],
        "too many bytes": [first, weight, messages.UploadRequest(data=b"\0"), bias],
        "a tensor too few": [first, weight],
        "out of order": [first, bias, weight],
        "bytes of nothing": [first, messages.UploadRequest(data=b"\0" * 8)],
        "one beyond": [*whole, beyond],
        "a negative one": [first, negative],
        "one twice": [first, weight, weight],
        "a key twice": [twice, weight, messages.UploadRequest(begins=1, data=weight.data)],
    }


@pytest.mark.parametrize("name", malformed())
def test_a_malformed_upload_is_refused_and_changes_nothing(name: str) -> None:
    model = nn.Linear(2, 1)
    before = copy.deepcopy(model.state_dict())
    with serving(model) as rpc:
        refusal = refused(lambda: rpc.Upload(malformed()[name]))
    assert (refusal.code, refusal.reason) == ("INVALID_ARGUMENT", "BAD_REQUEST")
    assert equal(dict(model.state_dict()), dict(before))


def test_an_upload_that_breaks_off_changes_nothing() -> None:
    model = nn.Sequential(nn.Linear(200, 200), nn.Linear(200, 200))
    before = copy.deepcopy(model.state_dict())
    other = nn.Sequential(nn.Linear(200, 200), nn.Linear(200, 200)).state_dict()

    def broken() -> Iterator[messages.UploadRequest]:
        whole = list(requests_of(other.items()))
        yield from whole[:-1]
        raise ConnectionResetError

    with serving(model) as rpc:
        with pytest.raises(grpc.RpcError):
            rpc.Upload(broken())
        assert equal(dict(model.state_dict()), dict(before))
        rpc.Upload(requests_of(other.items()))
    assert equal(dict(model.state_dict()), dict(other))


def test_staging_memory_bounds_both_ways() -> None:
    model = nn.Linear(500, 500)
    with serving(model, limits=Limits(staging_bytes=900_000)) as rpc:
        for call in (lambda: rpc.Download(), lambda: rpc.Upload(requests_of(model.state_dict().items()))):
            refusal = refused(call)
            assert (refusal.code, refusal.reason) == ("RESOURCE_EXHAUSTED", "LIMIT")
            assert "staging_bytes" in refusal.hint


def test_a_reader_that_leaves_gives_its_memory_back() -> None:
    model = nn.Linear(2000, 1000)
    with serving(model, limits=Limits(staging_bytes=10_000_000)) as rpc:
        streams: list[Any] = []

        def begin() -> None:
            stream = rpc.Download()
            next(stream)
            streams.append(stream)

        for _ in range(20):
            until(lambda: admitted(begin))
            streams.pop().cancel()
