"""Watches that want the same share what taps do for them, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from modscope_server.runtime.hooks import HookManager, Watch
from modscope_server.runtime.registry import Registered, Registry
from modscope_server.runtime.watch_spec import WatchSpec

X = torch.ones(1, 2)


@pytest.fixture
def manager() -> Iterator[HookManager]:
    hooks = HookManager(watches=100, events=1000, size=1 << 24, block_ms=1000)
    yield hooks
    hooks.stop_all("closed")


@pytest.fixture
def registered() -> Registered:
    return Registry({"model": nn.Sequential(nn.Linear(2, 2), nn.ReLU())}).get()


def seen(watch: Watch) -> list[tuple[int, str]]:
    return [(event.seq, event.path) for event in watch.subscription.drain(0)]


def test_a_module_has_one_sink_for_all_who_want_the_same(
    manager: HookManager, registered: Registered
) -> None:
    alike: list[dict[str, Any]] = [
        {},
        {"queue": 7},
        {"overflow": "drop_newest"},
        {"keep": 5.0},
        {"overflow": "disconnect"},
    ]
    watches = [manager.watch(registered, WatchSpec(**options)) for options in alike]
    (tap,) = {watch.taps[1] for watch in watches}
    assert len(tap.sinks) == 1
    registered.root(X)
    for watch in watches:
        assert seen(watch) == [(0, "0"), (1, "1"), (2, "")]
    for watch in watches[:-1]:
        manager.stop(watch.subscription.id)
        assert len(tap.sinks) == 1
    registered.root(X)
    assert len(seen(watches[-1])) == 3
    manager.stop(watches[-1].subscription.id)
    assert not tap.sinks
    assert not any(module._forward_hooks for module in registered.root.modules())
    assert not manager._selections


def test_who_comes_later_counts_from_its_own_beginning(manager: HookManager, registered: Registered) -> None:
    first = manager.watch(registered, WatchSpec(glob="0"))
    registered.root(X)
    second = manager.watch(registered, WatchSpec(glob="0"))
    registered.root(X)
    assert [number for number, _ in seen(first)] == [0, 1]
    assert [number for number, _ in seen(second)] == [0]
    manager.stop(first.subscription.id)
    registered.root(X)
    assert [number for number, _ in seen(second)] == [1]
    assert first.subscription.counters().published == 2


@pytest.mark.parametrize(
    "options",
    [
        {"glob": "0"},
        {"payload": "none"},
        {"sample": 5},
        {"every": 2},
        {"phase": "training"},
        {"kinds": ("forward_pre",)},
        {"max_rate": 1e9},
        {"overflow": "block", "block_ms": 1.0},
    ],
)
def test_who_wants_something_else_or_makes_hooks_wait_shares_nothing(
    manager: HookManager, registered: Registered, options: dict[str, Any]
) -> None:
    plain = manager.watch(registered, WatchSpec())
    other = manager.watch(registered, WatchSpec(**options))
    twin = manager.watch(registered, WatchSpec(**options))
    assert other.selection is not plain.selection
    alone = "max_rate" in options or "overflow" in options
    assert (twin.selection is other.selection) is not alone


def test_an_observer_of_the_server_shares_nothing(manager: HookManager, registered: Registered) -> None:
    taken: list[str] = []
    watch = manager.watch(registered, WatchSpec())
    for _ in range(2):
        manager.watch(registered, WatchSpec(), lambda draft: taken.append(draft.path))
    registered.root(X)
    assert taken == ["0", "0", "1", "1", "", ""]
    assert len(seen(watch)) == 3
