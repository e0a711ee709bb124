"""An accelerator of which the test is the driver."""

from __future__ import annotations

from typing import Any

import pytest
import torch

__all__ = ["Elsewhere", "Stream", "on_elsewhere"]


class Stream:
    """Its queue: what was copied arrives when the test says so, or when somebody waits for it."""

    arrived = False

    def record(self) -> None: ...

    def query(self) -> bool:
        return Stream.arrived

    def synchronize(self) -> None:
        Stream.arrived = True


class Elsewhere(torch.Tensor):
    """On that device; any look at its value is a synchronisation."""

    device = torch.device("cuda")  # type: ignore[assignment]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        looks = func in (torch.Tensor.item, torch.Tensor.__float__, torch.Tensor.tolist)
        assert Stream.arrived or not looks, "the device was waited for"
        return super().__torch_function__(func, types, args, kwargs or {})


class _Plain:
    Event = Stream


def on_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torch take that device for one that there is, on which nothing has arrived yet."""
    monkeypatch.setattr(torch, "get_device_module", lambda device: _Plain)
    Stream.arrived = False
