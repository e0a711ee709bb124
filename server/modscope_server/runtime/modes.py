"""The thread-local modes under which requests run, whatever the thread had set."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

__all__ = ["neutral_modes"]


class neutral_modes:  # noqa: N801 - reads as a context manager
    """The thread-local modes under which requests run, whatever the thread had set: no grad, no autocast.

    Only what differs is entered: every small read passes here, and torch's own contexts cost microseconds.
    """

    def __enter__(self) -> None:
        with contextlib.ExitStack() as stack:
            inference = torch.is_inference_mode_enabled()
            if inference:
                stack.enter_context(torch.inference_mode(False))
            if inference or torch.is_grad_enabled():
                stack.enter_context(torch.no_grad())
            for device in ("cpu", "cuda", "mps"):
                if torch.is_autocast_enabled(device):
                    stack.enter_context(torch.autocast(device, enabled=False))
            self._stack = stack.pop_all()

    def __exit__(self, *exc: Any) -> None:
        self._stack.__exit__(*exc)
