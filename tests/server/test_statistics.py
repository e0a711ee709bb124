"""Statistics against numpy in float64: on the CPU's path, and on the one for other devices run on the CPU."""

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

from modscope_server.errors import NotMaterialized
from modscope_server.inspection import statistics as module
from modscope_server.inspection.device_reduction import masked
from modscope_server.inspection.records import StatsRecord
from modscope_server.inspection.statistics import Reduction, reduce, statistics
from modscope_server.runtime.captured import Form, plain_value_in
from tests.models import unreadable

FLOATS = (
    *("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"),
    *("float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"),
)
INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool")


def on_device_path(t: torch.Tensor) -> StatsRecord:
    """What a device other than the CPU computes, in chunks of 1,000."""
    if not t.numel():
        return reduce(t).resolve()
    rows = [masked(module._columns(chunk)) for chunk in torch.split(module._flat(t.detach()), 1000)]
    return Reduction(t.numel(), t.is_complex(), torch.stack(rows)).resolve()


def as_a_hook_does(t: torch.Tensor) -> StatsRecord:
    """What a hook tells of it, beside others of the same size."""
    form = Form("stats")
    values = [plain_value_in(form, "output", "", one) for one in (torch.ones_like(t), t, torch.zeros_like(t))]
    reduction = values[1].reduction
    assert reduction is not None
    return reduction.resolve()


PATHS: dict[str, Callable[[torch.Tensor], StatsRecord]] = {
    "cpu": statistics,
    "device": on_device_path,
    "hook": as_a_hook_does,
}


def oracle(t: torch.Tensor) -> StatsRecord:
    """The same by numpy in float64 or complex128, two passes."""
    wide = torch.complex128 if t.is_complex() else torch.float64
    values: Any = t.detach().resolve_conj().to(wide).numpy().reshape(-1)
    nan = np.isnan(values)
    finite = values[np.isfinite(values)]
    counts = (int((finite == 0).sum()), int(nan.sum()), int((np.isinf(values) & ~nan).sum()))
    if not finite.size:
        return StatsRecord(t.numel(), None, None, None, None, None, *counts)
    scale = max(float(np.abs(finite).max()), 1e-300)
    norm = float(np.linalg.norm(finite / scale)) * scale
    std = float(np.std(finite / scale)) * scale
    if t.is_complex():
        return StatsRecord(t.numel(), None, std, None, None, norm, *counts)
    mean = math.fsum(finite / finite.size)
    return StatsRecord(t.numel(), mean, std, float(finite.min()), float(finite.max()), norm, *counts)


def check(t: torch.Tensor, path: str = "cpu", rel: float = 1e-5) -> StatsRecord:
    got, want = PATHS[path](t), oracle(t)
    assert (got.count, got.zeros, got.nan, got.inf) == (want.count, want.zeros, want.nan, want.inf)
    for name in ("mean", "std", "min", "max", "norm"):
        value, expected = getattr(got, name), getattr(want, name)
        if expected is None:
            assert value is None, name
        else:
            # numpy's own rounding: a mean that is 0 in truth comes out as some 1e-16 of the largest value.
            slack = 1e-15 * max(abs(want.min or 0.0), abs(want.max or 0.0), want.norm or 0.0)
            assert type(value) is float
            assert value == pytest.approx(expected, rel=rel, abs=slack), name
    return got


def normal(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("n", [1, 2, 1000, 16384, 16385, 60_000])
@pytest.mark.parametrize(
    "change",
    [
        lambda x: x,
        lambda x: x.relu(),
        lambda x: x.sigmoid(),
        lambda x: x * 1e-2 + 1e4,
        lambda x: x * 1e30,
        lambda x: x.clamp(-3, 3) * 1e38,
        lambda x: x * 1e-30,
        lambda x: x * 1e-42,
        lambda x: x * 0 + 0.1,
        lambda x: x - x.mean(),
        lambda x: torch.linspace(-1, 1, x.numel()),
    ],
    ids=["normal", "relu", "sigmoid", "far", "1e30", "1e38", "1e-30", "denormal", "constant", "0", "line"],
)
def test_float32_is_true_to_float64(
    change: Callable[[torch.Tensor], torch.Tensor], n: int, path: str
) -> None:
    check(change(normal(n)), path)


def test_a_spread_far_smaller_than_the_mean_is_not_lost() -> None:
    far = normal(300_000).double() * 1e-3 + 1e6
    assert check(far, rel=1e-6).std == pytest.approx(1e-3, rel=0.01)
    near = (normal(300_000) * 1e-2 + 1e4).sort().values
    assert check(near).std == pytest.approx(1e-2, rel=0.05)


def test_more_than_one_chunk() -> None:
    t = normal((2 << 20) + 7)
    check(t)
    check(t.relu() + 1e-3)
    t[5], t[-1] = math.nan, 0.0
    check(t.bfloat16())


def test_chunks_whose_sums_cancel_are_summed_again() -> None:
    half = normal(1 << 20).abs() + 1
    t = torch.cat([half, -half, torch.tensor([1.0])])
    assert statistics(t).mean == pytest.approx(1 / t.numel(), rel=1e-9)


def test_double_reaches_what_squares_cannot() -> None:
    for scale in (1e300, 1e-300, 5e-324):
        check(normal(100).double() * scale)
        check(normal(100).double() * scale, "device")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("n", [40, 20_000])
def test_nan_inf_and_zero_are_counted_apart(n: int, path: str) -> None:
    t = normal(n) + 3
    t[::7], t[1::7], t[2::7], t[3::7] = math.nan, math.inf, -math.inf, 0.0
    t[4] = -0.0
    record = check(t, path)
    assert record.nan == len(t[::7])
    assert record.inf == len(t[1::7]) + len(t[2::7])
    assert record.zeros == len(t[3::7]) + 1


@pytest.mark.parametrize("path", PATHS)
def test_nothing_finite_leaves_nothing_to_tell(path: str) -> None:
    for n in (3, 20_000):
        assert check(torch.full((n,), math.nan), path).mean is None
        assert check(torch.full((n,), -math.inf), path).norm is None
    assert check(torch.empty(0, 3), path) == StatsRecord(0, None, None, None, None, None, 0, 0, 0)
    assert statistics(torch.empty(0, dtype=torch.complex64)).count == 0


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("n", [5, 20_000])
def test_every_float_dtype(name: str, n: int, path: str) -> None:
    dtype = getattr(torch, name)
    check(normal(n).abs().clamp(0.1, 4).to(dtype), path)
    if name not in ("float8_e8m0fnu",):
        check((normal(n) * 3).to(dtype), path)
    raw = torch.randint(0, 256, (n * dtype.itemsize,), dtype=torch.uint8)
    record = check(raw.view(dtype), path) if dtype.itemsize == 1 else None
    assert record is None or record.count == n


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", INTEGERS)
def test_every_whole_dtype(name: str, path: str) -> None:
    dtype = getattr(torch, name)
    for n in (7, 20_000):
        t = torch.randint(0, 2 if name == "bool" else 100, (n,)).to(dtype)
        check(t, path)
        if dtype.is_signed:
            check(t - 50, path)
    if name == "uint64":
        assert statistics(torch.tensor([2**64 - 1, 0], dtype=dtype)).max == float(2**64 - 1)


@pytest.mark.parametrize("name", ["complex64", "complex128"])
def test_complex_has_a_real_norm_and_no_order(name: str) -> None:
    t = torch.complex(normal(3000), normal(3000, 1) + 100).to(getattr(torch, name))
    record = check(t)
    assert record.mean is record.min is record.max is None
    check(t.conj())
    check(t * 1e30)
    special = [complex(math.nan, math.inf), complex(0, -math.inf), complex(1, math.nan), 0j]
    t[:4] = torch.tensor(special, dtype=t.dtype)
    record = check(t)
    assert (record.nan, record.inf, record.zeros) == (2, 1, 1)


def test_any_layout_of_memory() -> None:
    base = normal(24 * 1000).reshape(2, 3, 4, 1000)
    for t in (
        base.permute(3, 1, 0, 2),
        base[:, ::2, 1:, ::3],
        base.to(memory_format=torch.channels_last),
        base[0, 0, 0, 0],
        torch.tensor(2.5),
        torch.ones(3, 1).expand(3, 10_000),
        base.as_strided((3, 5), (1, 1)),
        torch.complex(base, base).imag,
    ):
        check(t)


def test_the_tensor_stays_as_it_is() -> None:
    t = torch.nn.Parameter(torch.tensor([[1.0, math.nan], [3.0, 4.0]]))
    before, version = t.detach().clone(), t._version
    reduction = reduce(t)
    with torch.no_grad():
        t.fill_(7)
    assert reduction.resolve().max == 4.0
    assert t._version == version + 1
    assert torch.equal(t.detach(), torch.full((2, 2), 7.0))
    assert statistics(before).nan == 1
    assert t.grad is None
    assert t.requires_grad


def test_the_device_path_asks_the_device_for_no_value() -> None:
    # A meta tensor has no values: whatever waited for one would raise.
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool, torch.complex64):
        columns = module._columns(torch.empty(10, dtype=dtype, device="meta"))
        assert masked(columns).shape == (10,)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_reduces_without_waiting() -> None:
    mode = torch.cuda.get_sync_debug_mode()
    for t in (normal(100_000), normal(1000).bfloat16(), torch.complex(normal(10), normal(10))):
        there = t.cuda()
        torch.cuda.set_sync_debug_mode("error")
        try:
            reduction = reduce(there)
        finally:
            torch.cuda.set_sync_debug_mode(mode)
        got, want = reduction.resolve(), oracle(t)
        assert got.std == pytest.approx(want.std, rel=1e-5)
        assert got.norm == pytest.approx(want.norm, rel=1e-5)


def test_what_has_no_plain_elements_is_refused() -> None:
    holder = unreadable()
    for tensor in (*holder.parameters(), *holder.buffers()):
        if tensor is holder.plain:
            assert statistics(tensor).count == 2
        else:
            with pytest.raises(NotMaterialized):
                reduce(tensor)
    if hasattr(torch, "float4_e2m1fn_x2"):
        with pytest.raises(NotMaterialized, match="no arithmetic for float4_e2m1fn_x2"):
            reduce(torch.zeros(4, dtype=torch.uint8).view(torch.float4_e2m1fn_x2))


@given(
    arrays(
        np.float32,
        array_shapes(max_dims=2, max_side=9),
        elements=st.floats(width=32, allow_nan=True, allow_infinity=True),
    )
)
def test_any_float32(values: Any) -> None:
    t = torch.from_numpy(values)
    for path in PATHS:
        check(t, path)
