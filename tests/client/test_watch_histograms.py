"""Histograms and samples through both clients, against numpy in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy
import pytest
import torch
from torch import nn

import modscope_server
from tests.client.both import CLIENTS, entered, served_to


async def first(model: Any, module: nn.Module, given: torch.Tensor, **options: Any) -> Any:
    """The only value of the first event."""
    async with entered(model.watch("", **options)) as events:
        module(given)
        event = await anext(events) if hasattr(events, "__anext__") else next(events)
        return event.values[0]


@pytest.mark.parametrize("kind", CLIENTS)
def test_a_histogram_counts_what_the_hook_saw(kind: Any) -> None:
    module, given = nn.Identity(), torch.randn(300, 70, generator=torch.Generator().manual_seed(0))
    given[0, :2] = torch.tensor([math.nan, math.inf])

    async def body(model: Any) -> Any:
        return await first(model, module, given, payload="histogram")

    with modscope_server.attach(module) as scope:
        value = served_to(kind, scope, body)
    values = given.double().numpy().reshape(-1)
    finite = values[numpy.isfinite(values)]
    found = value.histogram
    counts, _ = numpy.histogram(finite, found.edges)
    # An element within rounding of an edge may count on either side.
    assert numpy.abs(numpy.cumsum(counts) - numpy.cumsum(found.counts)).max() <= 2
    assert sum(found.counts) == len(finite)
    assert (found.edges[0], found.edges[-1]) == (finite.min(), finite.max())
    assert value.stats.mean == pytest.approx(finite.mean(), rel=1e-5, abs=1e-9)
    assert value.sample is None


@pytest.mark.parametrize("kind", CLIENTS)
def test_a_sample_states_its_size_and_error(kind: Any) -> None:
    module, given = nn.Identity(), torch.randn(300, 70, generator=torch.Generator().manual_seed(0)) + 5

    async def body(model: Any) -> Any:
        return await first(model, module, given, sample=1000)

    with modscope_server.attach(module) as scope:
        value = served_to(kind, scope, body)
    assert 500 < value.sample.elements == value.stats.count <= 1000
    assert value.shape == (300, 70)
    assert value.histogram is None
    assert 0.5 / math.sqrt(1000) < value.sample.mean_error < 1.5 / math.sqrt(500)
    # Six standard errors.
    assert abs(value.stats.mean - float(given.double().mean())) < 6 * value.sample.mean_error
