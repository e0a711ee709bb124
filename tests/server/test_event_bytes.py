"""The bytes of an event, joined by hand, say exactly what the generated class would say."""

from __future__ import annotations

import math
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from modscope.v1 import event_pb2, hook_service_pb2
from modscope_server.inspection.partial_sums import Part
from modscope_server.inspection.records import HistogramRecord
from modscope_server.inspection.statistics import Later, Reduction, reduce
from modscope_server.runtime.captured import Form, plain_value_in
from modscope_server.runtime.drafts import Draft, DraftValue
from modscope_server.runtime.runs import Block, Run
from modscope_server.services.event_bytes import common_part, entries, pack

INT64 = st.integers(-(1 << 63), (1 << 63) - 1)
COUNT = st.integers(0, (1 << 53) - 1)
KINDS = ("forward_pre", "forward", "backward_pre", "backward", "parameter", "gradient", "metric")
ROLES = ("input", "output", "grad_input", "grad_output", "parameter", "gradient", "metric")
TEXT = st.text(max_size=8)


@st.composite
def reductions(draw: st.DrawFn) -> Reduction:
    finite = draw(st.integers(0, 1 << 40))
    numbers = [draw(st.floats()) for _ in range(6)]
    part = Part._make((finite, *numbers, draw(COUNT), draw(COUNT), draw(COUNT)))
    edges = st.lists(st.floats(), min_size=1, max_size=5).map(tuple)
    histogram = st.builds(HistogramRecord, edges, st.lists(COUNT, max_size=200).map(tuple))
    population = draw(st.none() | st.integers(1 << 40, 1 << 41))
    return Reduction(draw(COUNT), draw(st.booleans()), (part,), draw(st.none() | histogram), population)


TENSORS = st.sampled_from(
    [
        torch.zeros(()),
        torch.zeros(3, 0, dtype=torch.bfloat16),
        torch.ones(200, 3, dtype=torch.complex64),
        torch.ones(5, dtype=torch.bool),
        torch.ones(2, 3).T,
    ]
)
VALUES = st.builds(
    DraftValue,
    st.sampled_from(ROLES),
    TEXT,
    st.lists(COUNT, max_size=4).map(tuple),
    st.none() | st.sampled_from(["", "float32", "bfloat16"]),
    st.none() | reductions(),
    st.none() | TENSORS,
    TEXT,
)
DRAFTS = st.builds(
    Draft,
    INT64,
    TEXT,
    TEXT,
    TEXT,
    TEXT,
    st.sampled_from(KINDS),
    INT64,
    st.booleans(),
    st.floats(0, 4e9),
    st.lists(VALUES, max_size=3).map(tuple),
)


def told(draft: Draft, sequence: int, dropped: int) -> event_pb2.Event:
    """The event as the generated class is told it, field by field."""
    seconds = int(draft.time)
    event = event_pb2.Event(
        seq=sequence,
        step=draft.step,
        model=draft.model,
        path=draft.path,
        type=draft.type,
        hook=f"HOOK_KIND_{draft.hook.upper()}",  # type: ignore[arg-type]  # the name of an enum value
        call=draft.call,
        time={"seconds": seconds, "nanos": int((draft.time - seconds) * 1e9)},  # type: ignore[arg-type]
        dropped=dropped,
        raw_path=draft.raw_path,
        recompute=draft.recompute,
    )
    for value in draft.values:
        event.values.append(event_pb2.ValueInfo(**told_value(value)))
    return event


def told_value(value: DraftValue) -> dict[str, Any]:
    found: dict[str, Any] = {"role": f"ROLE_{value.role.upper()}", "key": value.key, "note": value.note}
    if value.dtype is not None:
        found |= {"shape": value.shape, "dtype": value.dtype}
    if value.reduction is not None:
        record, sample = value.reduction.resolve(), value.reduction.sample()
        found["stats"] = {name: number for name, number in record._asdict().items() if number is not None}
        histogram = value.reduction.histogram()
        if histogram is not None:
            found["histogram"] = {"edges": histogram.edges, "counts": histogram.counts}
        if sample is not None:
            error = {} if sample.mean_error is None else {"mean_error": sample.mean_error}
            found["sample"] = {"elements": sample.elements, **error}
    if value.copy is not None:
        name = str(value.copy.dtype).removeprefix("torch.")
        found["tensor"] = {
            "dtype": f"DTYPE_{name.upper()}",
            "dtype_name": name,
            "shape": value.copy.shape,
            "byte_size": value.copy.numel() * value.copy.element_size(),
        }
    return found


def sent(draft: Draft, sequence: int, dropped: int) -> event_pb2.Event:
    (event,) = all_sent(Run(sequence, Block([draft]), 0, 1), dropped)
    return event


def all_sent(run: Run, dropped: int = 0) -> list[event_pb2.Event]:
    return list(hook_service_pb2.WatchResponse.FromString(b"".join(entries(run, dropped))).events)


@given(DRAFTS, COUNT, COUNT)
def test_the_bytes_say_what_the_generated_class_says(draft: Draft, sequence: int, dropped: int) -> None:
    expected = told(draft, sequence, dropped)
    got = sent(draft, sequence, dropped)
    # Not ==, by which nan differs from itself.
    assert got.SerializeToString(deterministic=True) == expected.SerializeToString(deterministic=True)
    assert len(common_part(draft)) == len(told(draft, 0, 0).SerializeToString())


def test_numbers_that_are_none_are_absent_and_others_are_not() -> None:
    nothing = reduce(torch.tensor([math.nan, math.inf]))
    zeros = reduce(torch.zeros(3))
    values = tuple(DraftValue("output", "", (3,), "float32", reduction) for reduction in (nothing, zeros))
    event = sent(plain(values=values), 0, 0)
    absent, present = (value.stats for value in event.values)
    assert (absent.count, absent.nan, absent.inf) == (2, 1, 1)
    for name in ("mean", "std", "min", "max", "norm"):
        assert not absent.HasField(name)
        assert present.HasField(name)
        assert getattr(present, name) == 0.0


def plain(step: int = 1, values: tuple[DraftValue, ...] = ()) -> Draft:
    return Draft(step, "m", "p", "p", "T", "forward", 0, False, 0.0, values)


def test_rows_that_were_reduced_together_are_told_as_each_is() -> None:
    torch.manual_seed(0)
    x = torch.randn(7)
    kinds = (x, x.relu(), x + 1e4, torch.full((7,), 3.0), torch.zeros(7), x / 0, x * math.nan, x * 1e38)
    for tensors in (kinds, kinds[:1], kinds[1:2], kinds[6:7]):
        values = [plain_value_in(Form("stats"), "output", "", tensor) for tensor in tensors]
        reductions = [value.reduction for value in values]
        assert all(reduction and isinstance(reduction.parts, Later) for reduction in reductions)
        drafts = [plain(values=(value,)) for value in values]
        assert all_sent(Run(0, Block(drafts), 0, len(drafts))) == [
            told(draft, number, 0) for number, draft in enumerate(drafts)
        ]


@given(st.integers(0, 1 << 22), st.integers(1, 150), st.integers(0, 200), st.data())
def test_each_subscriber_has_its_own_numbers_in_what_all_are_sent(
    first: int, length: int, dropped: int, data: st.DataObject
) -> None:
    block = Block([plain(step) for step in range(length)])
    for _ in range(3):
        start = data.draw(st.integers(0, length - 1))
        run = Run(first, block, start, data.draw(st.integers(start + 1, length)))
        events = all_sent(run, dropped)
        assert [event.seq for event in events] == list(range(first, run.end))
        assert [event.step for event in events] == list(range(start, run.stop))
        assert {event.dropped for event in events} == {dropped}


def test_an_event_is_encoded_once_for_all_subscribers() -> None:
    block = Block([plain()])
    (first,) = all_sent(Run(5, block, 0, 1))
    kept = block.drafts[0].encoded
    assert kept is not None
    (second,) = all_sent(Run(700, block, 0, 1), 2)
    (third,) = all_sent(Run(9, Block(block.drafts), 0, 1))
    assert block.drafts[0].encoded is kept
    assert [(event.seq, event.dropped) for event in (first, second, third)] == [(5, 0), (700, 2), (9, 0)]
    first.seq = second.seq = third.seq = second.dropped = 0
    assert first == second == third


def test_what_is_on_the_host_is_packed_and_sent_as_what_is_not() -> None:
    stats = (DraftValue("output", "", (3,), "float32", reduce(torch.arange(3.0))),)
    note = (DraftValue("output", "", note="forward raised ValueError"),)
    block = Block([plain(3, stats), plain(4, note)])
    packed = Block([pack(draft) for draft in block.drafts])  # type: ignore[arg-type]  # none is packed yet
    assert all(isinstance(item, bytes) for item in packed.drafts)
    assert all_sent(Run(126, packed, 0, 2), 5) == all_sent(Run(126, block, 0, 2), 5)


def test_what_is_on_a_device_or_holds_a_tensor_is_left_as_it_is() -> None:
    on_device = reduce(torch.ones(3))._replace(parts=torch.zeros(1, 10))
    for value in (
        DraftValue("output", "", (3,), "float32", on_device),
        DraftValue("output", "", (3,), "float32", copy=torch.ones(3)),
    ):
        draft = plain(1, (value,))
        assert pack(draft) is draft
