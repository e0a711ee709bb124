"""Histograms against numpy: every finite element is in its bucket, on the CPU's path and on the device's."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from modscope_server.inspection import statistics as module
from modscope_server.inspection.device_reduction import counted, masked
from modscope_server.inspection.records import HistogramRecord
from modscope_server.inspection.statistics import Reduction, reduce


def on_cpu(t: torch.Tensor) -> HistogramRecord | None:
    return reduce(t, histogram=True).histogram()


def on_device(t: torch.Tensor) -> HistogramRecord | None:
    """What a device other than the CPU computes, in chunks of 1,000."""
    chunks = [module._columns(chunk) for chunk in torch.split(module._flat(t.detach()), 1000)]
    rows = torch.stack([masked(chunk) for chunk in chunks])
    return Reduction(t.numel(), False, rows, counted([chunk[:, 0] for chunk in chunks], rows)).histogram()


PATHS: dict[str, Callable[[torch.Tensor], HistogramRecord | None]] = {"cpu": on_cpu, "device": on_device}


def check(t: torch.Tensor, path: str = "cpu") -> HistogramRecord:
    """Each edge parts the elements as numpy does, but for those within rounding of it."""
    got = PATHS[path](t)
    assert got is not None
    values: Any = t.detach().to(torch.float64).numpy().reshape(-1)
    finite = np.sort(values[np.isfinite(values)])
    edges = np.array(got.edges)
    assert len(edges) == len(got.counts) + 1
    assert (edges[0], edges[-1]) == (finite[0], finite[-1])
    assert sum(got.counts) == len(finite)
    assert min(got.counts[0], got.counts[-1]) > 0
    assert (np.diff(edges) >= 0).all()
    is_single = t.dtype.itemsize < 4 or t.dtype is torch.float32
    scale = max(abs(edges[0]), abs(edges[-1]))
    # A difference from the mean is rounded to what the dtype holds of it.
    spread = max(abs(edges - edges.mean())) / scale if len(edges) > 2 and scale else 1.0
    slack = min(1.0, spread * 2) * scale * (2.0**-20 if is_single else 2.0**-48)
    so_far = np.cumsum(got.counts)[:-1]
    assert (so_far >= np.searchsorted(finite, edges[1:-1] - slack, "left")).all()
    assert (so_far <= np.searchsorted(finite, edges[1:-1] + slack, "right")).all()
    return got


def normal(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("n", [2, 3, 1000, 40_000])
@pytest.mark.parametrize(
    "change",
    [
        lambda x: x,
        lambda x: x.relu() + 0.0,
        lambda x: -x.exp(),
        lambda x: x * 1e-2 + 1e4,
        lambda x: x * 1e30,
        lambda x: x.clamp(-3, 3) * 1e38,
        lambda x: x * 1e-30,
        lambda x: x * 1e-42,
        lambda x: x.double() * 1e300,
        lambda x: x.double() * 1e-320,
        lambda x: x.double() * 1e-8 + 1e8,
        lambda x: (x * 8).round().to(torch.int8),
        lambda x: (x * 1e10).to(torch.int64),
        lambda x: x > 1,
        lambda x: x.bfloat16(),
        lambda x: x.half(),
        lambda x: x.to(torch.float8_e5m2),
        lambda x: torch.cat([x, torch.tensor([1e30])]),
    ],
    ids=[
        "normal",
        "relu",
        "exp",
        "far",
        "1e30",
        "1e38",
        "1e-30",
        "denormal",
        "d300",
        "d-320",
        "dfar",
        "int8",
        "int64",
        "bool",
        "bf16",
        "half",
        "f8",
        "outlier",
    ],
)
def test_every_finite_element_is_in_its_bucket(
    change: Callable[[torch.Tensor], torch.Tensor], n: int, path: str
) -> None:
    x = normal(n)
    x[0], x[1] = -2.0, 2.0
    check(change(x), path)


@pytest.mark.parametrize("path", PATHS)
def test_elements_that_are_not_finite_are_left_out(path: str) -> None:
    for t in (normal(50), normal(20_000).double()):
        t[::5], t[1::5], t[2::5] = math.nan, math.inf, -math.inf
        check(t, path)


@pytest.mark.parametrize("path", PATHS)
def test_equal_elements_share_one_bucket_without_width(path: str) -> None:
    for value in (0.0, -0.0, 3.5, 2.0**100):
        assert PATHS[path](torch.full((30,), value)) == HistogramRecord((value, value), (30,))
    assert PATHS[path](torch.tensor([math.inf, 7.0, math.nan])) == HistogramRecord((7.0, 7.0), (1,))
    assert PATHS[path](torch.full((5,), math.nan)) is None


@pytest.mark.parametrize("path", PATHS)
def test_both_zeros_are_in_one_bucket(path: str) -> None:
    found = check(torch.tensor([-1.0, -0.0, 0.0, 1.0]), path)
    assert [count for count in found.counts if count] == [1, 2, 1]


def test_what_has_no_order_or_no_elements_has_no_histogram() -> None:
    assert on_cpu(torch.empty(0)) is None
    assert on_cpu(torch.complex(normal(5), normal(5))) is None
    assert reduce(normal(5)).histogram() is None


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (1e-20, 0.0), (1e20, 1e20), (3.0, 1000.0)])
def test_the_buckets_adapt_to_scale_and_place(scale: float, shift: float, path: str) -> None:
    found = check(normal(30_000) * scale + shift, path)
    assert 30 <= len(found.counts) <= 60
    assert max(found.counts) < 0.1 * 30_000


@pytest.mark.parametrize("path", PATHS)
def test_few_far_elements_leave_the_others_told_apart(path: str) -> None:
    t = normal(20_000)
    t[7], t[8] = 1e3, -1e3
    found = check(t, path)
    assert len(found.counts) < 128
    assert sum(count > 500 for count in found.counts) > 8


def test_more_than_one_chunk() -> None:
    t = normal((2 << 20) + 7)
    check(t)
    t[5], t[-1] = math.nan, 0.0
    check(t.bfloat16())


def test_both_paths_count_alike() -> None:
    t = normal(5000).double()
    one, other = on_cpu(t), on_device(t)
    assert one is not None
    assert other is not None
    assert sum(one.counts) == sum(other.counts)
    # The device divides by the largest element, so its unit is another one.
    assert abs(len(one.counts) - len(other.counts)) <= 16


def test_the_device_path_asks_the_device_for_no_value() -> None:
    # A meta tensor has no values: whatever waited for one would raise.
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool):
        columns = module._columns(torch.empty(10, dtype=dtype, device="meta"))
        rows = masked(columns)[None]
        assert counted([columns[:, 0]], rows).shape == (259,)


@given(
    arrays(
        np.float32,
        array_shapes(max_dims=1, max_side=20),
        elements=st.floats(width=32, allow_nan=True, allow_infinity=True),
    )
)
def test_any_float32(values: Any) -> None:
    t = torch.from_numpy(values)
    for path in PATHS:
        found = PATHS[path](t)
        if bool(t.isfinite().any()):
            assert found is not None
            finite = t[t.isfinite()]
            assert (found.edges[0], found.edges[-1]) == (float(finite.min()), float(finite.max()))
            assert sum(found.counts) == len(finite)
            assert list(found.edges) == sorted(found.edges)
        else:
            assert found is None
