"""What several subscribers want of one value is computed once, and never from what it was before."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from modscope_server.inspection.statistics import reduce, statistics
from modscope_server.runtime.hooks import HookManager
from tests.server.capture_support import armed, drained, manager

__all__ = ["manager"]


def test_the_same_tensor_is_reduced_once_for_all_who_see_it(
    manager: HookManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []

    def counted(tensor: torch.Tensor, *, histogram: bool, sample: int) -> Any:
        seen.append(histogram)
        return reduce(tensor, histogram=histogram, sample=sample)

    monkeypatch.setattr("modscope_server.runtime.captured.reduce", counted)
    model = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
    watches = [
        armed(manager, model, kinds=("forward_pre", "forward"), payload=payload)
        for payload in ("stats", "histogram", "stats")
    ]
    x = torch.randn(3, 2)
    model(x)
    # The input of the root and of its first child, then what each of the two children gives on.
    assert seen == [True] * 3
    for watch in watches:
        values = [event.values[0] for event in drained(watch)]
        assert [value.stats for value in values[:2]] == [statistics(x)] * 2
        assert values[-1].stats == values[-2].stats == statistics(model(x))
        assert {value.histogram is not None for value in values} == {watch.form.payload == "histogram"}


def test_a_tensor_that_was_changed_between_two_hooks_is_reduced_anew(manager: HookManager) -> None:
    class Doubles(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x).mul_(2)

    model = Doubles()
    for mode in (torch.no_grad, torch.inference_mode):
        watch = armed(manager, model)
        with mode():
            model(torch.ones(1, 2))
        inner, outer = (event.values[0].stats for event in drained(watch))
        assert inner is not None
        assert outer is not None
        assert inner.max is not None
        assert outer.max == 2 * inner.max


def test_samples_of_different_sizes_are_kept_apart(manager: HookManager) -> None:
    model = nn.Identity()
    watches = [armed(manager, model, sample=sample) for sample in (0, 10, 100)]
    x = torch.randn(50, 7)
    model(x)
    for watch, sample in zip(watches, (0, 10, 100), strict=True):
        assert drained(watch)[0].values[0].stats == reduce(x, sample=sample).resolve()


def test_parts_are_kept_apart(manager: HookManager) -> None:
    model = nn.Identity()
    indices = ("", "[0]", "[:, 1]")
    watches = [armed(manager, model, index=index) for index in indices]
    x = torch.randn(3, 4)
    model(x)
    for watch, part in zip(watches, (x, x[0], x[:, 1]), strict=True):
        assert drained(watch)[0].values[0].stats == statistics(part)


def test_a_histogram_is_not_taken_from_statistics_alone(manager: HookManager) -> None:
    model = nn.Identity()
    armed(manager, model, kinds=("forward_pre",))
    watch = armed(manager, model, payload="histogram")
    x = torch.randn(5, 7)
    model(x)
    assert drained(watch)[0].values[0].histogram == reduce(x, histogram=True).histogram()
