"""Gradients of one module call, gathered from tensor hooks.

Nothing here holds a tensor of the graph: the hooks live in the graph, so a reference back would
keep it alive.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch

__all__ = ["Expected", "GradientCollector", "awaited", "identity_views"]

_IN_PLACE = "in-place module: the gradient of its input cannot be had"
_NONE = -1
"""torch's number of the backward that runs, where none does."""


class Expected(NamedTuple):
    """A gradient that may come."""

    role: str
    key: str
    note: str = ""
    """Why it cannot come; empty where it can."""


class GradientCollector:
    """Waits for the gradients of some tensors and gives them on, once.

    Args:
        expected: all values of the event, in order, those that cannot come included.
        take: reduces or copies one gradient, at once, inside the hook.
        emit: gets what `take` made of each expected value, None where no gradient came.

    It emits when the last awaited gradient has come, or at the end of the backward pass in which
    the first one came: an output that the loss does not use gets none.
    """

    def __init__(
        self,
        expected: Sequence[Expected],
        take: Callable[[Expected, torch.Tensor], Any],
        emit: Callable[[Sequence[Any]], None],
    ) -> None:
        self._expected = expected
        self._take = take
        self._emit = emit
        self._awaited = 0
        self._renew()

    def _renew(self) -> None:
        self._values: list[Any] = [None] * len(self._expected)
        self._missing = self._awaited
        self._backward = _NONE

    def watch(self, index: int, tensor: torch.Tensor) -> None:
        """Await the gradient of `tensor` as the expected value at `index`."""
        tensor.register_hook(partial(self._came, index))  # type: ignore[no-untyped-call]
        self._awaited += 1
        self._missing += 1

    def _came(self, index: int, gradient: torch.Tensor) -> None:
        backward = torch._C._current_graph_task_id()
        if self._backward != backward:
            # Of a backward that has raised nothing comes any more.
            self._renew()
            self._backward = backward
            torch.autograd.Variable._execution_engine.queue_callback(self._finish)
        if self._values[index] is None:
            self._missing -= 1
        self._values[index] = self._take(self._expected[index], gradient)
        if not self._missing:
            self._finish()

    def _finish(self) -> None:
        if self._backward != _NONE:
            values = self._values
            # A graph that is kept may be walked again: the next backward is another event.
            self._renew()
            self._emit(values)


def awaited(
    outputs: Sequence[tuple[str, torch.Tensor | None]],
    inputs: Sequence[tuple[str, torch.Tensor | None, int]],
    in_place: bool,
) -> list[tuple[Expected, torch.Tensor | None]]:
    """The values of a backward event, each with the tensor whose gradient it is, where that can come.

    `inputs` have the version of each identity view as it was handed to forward: one that forward has
    changed in place tells of the changed value, and `in_place` modules do that to all.
    """
    found: list[tuple[Expected, torch.Tensor | None]] = []
    for key, view, version in inputs:
        spoiled = in_place or (view is not None and view._version != version)
        found.append((Expected("grad_input", key, _IN_PLACE if spoiled else ""), None if spoiled else view))
    for key, tensor in outputs:
        differentiable = tensor is not None and tensor.requires_grad
        found.append((Expected("grad_output", key), tensor if differentiable else None))
    return found


def identity_views(value: Any, views: dict[int, torch.Tensor], depth: int = 0) -> Any:
    """`value` with each differentiable tensor replaced by an identity view, kept in `views` by its id.

    Tuples, lists and dicts are rebuilt where a tensor in them was replaced; anything else is handed on.
    """
    if isinstance(value, torch.Tensor):
        if not value.requires_grad or value.layout != torch.strided:
            return value
        if id(value) not in views:
            views[id(value)] = value.view_as(value)
        return views[id(value)]
    if depth > 8:
        return value
    if type(value) in (tuple, list) or (isinstance(value, tuple) and hasattr(value, "_fields")):
        items = [identity_views(item, views, depth + 1) for item in value]
        if all(new is old for new, old in zip(items, value, strict=True)):
            return value
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if type(value) is dict:
        new = {key: identity_views(item, views, depth + 1) for key, item in value.items()}
        return value if all(new[key] is value[key] for key in value) else new
    return value
