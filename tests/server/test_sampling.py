"""Samples: few elements, evenly spread, and an error of the mean that holds."""

from __future__ import annotations

import math

import pytest
import torch

from modscope_server.inspection.sampling import stride_for
from modscope_server.inspection.statistics import reduce, statistics


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_what_is_not_larger_than_the_sample_is_taken_whole() -> None:
    t = normal(10, 10)
    for most in (0, 100, 1000):
        reduction = reduce(t, sample=most)
        assert reduction.sample() is None
        assert reduction.resolve() == statistics(t)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int32, torch.bool, torch.complex64])
def test_the_statistics_are_those_of_the_sample(dtype: torch.dtype) -> None:
    t = (normal(40, 50, 60) * 3).to(dtype)
    reduction = reduce(t, sample=1000, histogram=True)
    chosen = t.reshape(-1)[:: stride_for(t.shape, 1000)]
    sample, histogram = reduction.sample(), reduction.histogram()
    assert sample is not None
    assert 500 < sample.elements == len(chosen) <= 1000
    assert reduction.resolve() == statistics(chosen)
    assert histogram == reduce(chosen, histogram=True).histogram()
    if dtype.is_complex:
        assert sample.mean_error is None
    else:
        values = chosen.double()
        rest = 1 - len(chosen) / t.numel()
        expected = values.std().item() / math.sqrt(len(chosen)) * math.sqrt(rest)
        assert sample.mean_error == pytest.approx(expected, rel=1e-5)


def test_the_error_of_the_mean_holds() -> None:
    within = 0
    for seed in range(200):
        t = normal(30, 40, 50, seed=seed) + 2
        reduction = reduce(t, sample=2000)
        mean, sample = reduction.resolve().mean, reduction.sample()
        assert mean is not None
        assert sample is not None
        assert sample.mean_error is not None
        within += abs(mean - t.double().mean().item()) < sample.mean_error
    # 68 % in truth; 200 draws of that are outside of these bounds once in a hundred thousand times.
    assert 0.53 < within / 200 < 0.83


@pytest.mark.parametrize("shape", [(8, 128, 384), (64, 64, 64), (1024, 1024), (7, 11, 13), (30, 30, 1, 30)])
@pytest.mark.parametrize("most", [1, 7, 1000])
def test_every_channel_has_its_share(shape: tuple[int, ...], most: int) -> None:
    stride = stride_for(shape, most)
    assert all(math.gcd(stride, size) == 1 for size in shape)
    elements = -(-math.prod(shape) // stride)
    assert elements <= most
    channel = torch.arange(shape[-1]).expand(shape).reshape(-1)[::stride]
    if elements >= 2 * shape[-1]:
        per_channel = channel.bincount(minlength=shape[-1])
        assert per_channel.max() - per_channel.min() <= 1


def test_a_sample_without_two_finite_elements_states_no_error() -> None:
    t = torch.full((1000,), math.nan)
    sample = reduce(t, sample=10).sample()
    assert sample is not None
    assert sample.mean_error is None
    assert reduce(t, sample=10).resolve().nan == sample.elements
    t[0] = 1.0
    alone = reduce(t, sample=10).sample()
    assert alone is not None
    assert alone.mean_error is None


def test_the_device_path_samples_alike() -> None:
    # Complex tensors take it on the CPU too.
    t = normal(100, 70)
    assert reduce(t.to(torch.complex64), sample=500).elements == reduce(t, sample=500).elements
