"""What a watch is asked for reaches the wire, and what has no meaning there is refused."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
import torch

from modscope.v1 import event_pb2, hook_service_pb2
from modscope_client import convert
from modscope_client.errors import InvalidArgument
from modscope_client.watch_request import watch


def test_nothing_said_is_the_contracts_default() -> None:
    assert watch("m") == hook_service_pb2.WatchRequest(
        model="m",
        glob="*",
        hooks=[event_pb2.HOOK_KIND_FORWARD],
        payload=event_pb2.PAYLOAD_STATS,
        every=1,
        overflow=event_pb2.OVERFLOW_DROP_OLDEST,
    )


def test_every_option_has_its_field() -> None:
    asked = watch(
        "m", "a.*", "Linear", ("forward", "metric"), "tensor", 10, "block", 7, 65536,
        start=0, stop=5, first_call=True, phase="evaluation", max_rate=2.5, index="[:, -1]",
        dtype="float16", block_ms=1.5, keep=30,
    )  # fmt: skip
    assert asked == hook_service_pb2.WatchRequest(
        model="m", glob="a.*", type="Linear",
        hooks=[event_pb2.HOOK_KIND_FORWARD, event_pb2.HOOK_KIND_METRIC],
        payload=event_pb2.PAYLOAD_TENSOR, every=10, overflow=event_pb2.OVERFLOW_BLOCK, queue=7, sample=65536,
        start=0, stop=5, first_call=True, phase=event_pb2.PHASE_EVALUATION, max_rate=2.5, index="[:, -1]",
        dtype="float16", block_ms=1.5, keep_seconds=30,
    )  # fmt: skip
    named = {field.name for field, _ in asked.ListFields()}
    assert named == {field.name for field in asked.DESCRIPTOR.fields} - {"resume", "resume_after"}
    assert asked.HasField("start") and not watch("m").HasField("start")


@pytest.mark.parametrize("table", [convert.HOOKS, convert.PAYLOADS, convert.OVERFLOWS, convert.PHASES])
def test_every_word_of_the_contract_can_be_said(table: dict[str, int]) -> None:
    enums = (event_pb2.HookKind, event_pb2.Payload, event_pb2.Overflow, event_pb2.Phase)
    assert any(sorted(table.values()) == sorted(set(enum.values()) - {0}) for enum in enums)


@pytest.mark.parametrize(
    "dtype", ["float16", torch.float16, numpy.float16, numpy.dtype("float16")], ids=lambda given: repr(given)
)
def test_a_dtype_is_its_name(dtype: Any) -> None:
    assert watch("m", dtype=dtype).dtype == "float16"


def test_a_watch_is_resumed_by_its_id() -> None:
    assert watch("m", resume="watch-3") == hook_service_pb2.WatchRequest(model="m", resume="watch-3")
    asked = watch("m", resume="watch-3", resume_after=0)
    assert asked.HasField("resume_after") and asked.resume_after == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"hooks": ()},
        {"hooks": "forwards"},
        {"payload": "all"},
        {"overflow": "wait"},
        {"phase": "validation"},
        {"every": 0},
        {"every": 1 << 40},
        {"queue": 0},
        {"sample": 0},
        {"sample": "many"},
        {"start": 0.5},
        {"index": slice(0, 1)},
        {"max_rate": 0},
        {"max_rate": float("nan")},
        {"block_ms": -1},
        {"resume": ""},
        {"resume": "watch-3", "glob": "a"},
        {"resume": "watch-3", "keep": 5},
        {"resume_after": 3},
    ],
)
def test_what_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        watch("m", **wrong)
    assert refusal.value.details["field"] in (*wrong, "resume") and refusal.value.hint


def test_how_long_it_is_kept_is_above_zero() -> None:
    with pytest.raises(InvalidArgument, match="keep is 0") as refusal:
        watch("m", keep=0)
    assert refusal.value.details["field"] == "keep"
