"""What a subscriber asks for: which modules, what of them, when, and what gives way."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from modscope_server.errors import BadRequest
from modscope_server.inspection.slices import parse_index
from modscope_server.runtime.bus import Overflow
from modscope_server.runtime.leases import LONGEST, SHORTEST
from modscope_server.runtime.parts import cast_target

__all__ = ["BOUNDARY_KINDS", "KINDS", "Payload", "Phase", "WatchSpec"]

Payload = Literal["none", "stats", "histogram", "tensor"]
Phase = Literal["training", "evaluation"]

KINDS = ("forward_pre", "forward", "backward_pre", "backward")
"""The hooks of modules, in the order in which they fire."""
BOUNDARY_KINDS = ("parameter", "gradient", "metric")
"""What is told at the end of an iteration, beside the hooks of modules."""


@dataclass(frozen=True, kw_only=True)
class WatchSpec:
    """What a subscriber asks for. Raises BadRequest for what has no meaning, UnknownDtype."""

    glob: str = "*"
    type: str = ""
    kinds: tuple[str, ...] = ("forward",)
    payload: Payload = "stats"
    sample: int = 0
    """Most elements of a tensor that statistics look at; 0 means all."""
    index: str = ""
    """Which part of each tensor, as inspection.slices reads it; empty for all."""
    dtype: str = ""
    """Tensor payload: what to cast to; empty for their own."""

    every: int = 1
    """Only steps whose number is a multiple of it."""
    start: int | None = None
    """First step that is watched; None for any."""
    stop: int | None = None
    """First step that is watched no more; None for none."""
    first_call: bool = False
    """Only the first call of each module in a step."""
    phase: Phase | None = None
    """Only calls in this phase."""
    max_rate: float = 0.0
    """Most events a second, over the time; 0 means no limit."""

    overflow: Overflow = "drop_oldest"
    queue: int = 0
    """Bound in events; 0 means the server's."""
    block_ms: float = 0.0
    """Overflow "block": how long training waits at most, in each step."""
    keep: float = 0.0
    """Seconds for which it goes on without a reader; 0 ends it with its reader."""

    def __post_init__(self) -> None:
        kinds = (*KINDS, *BOUNDARY_KINDS)
        unknown = [kind for kind in self.kinds if kind not in kinds]
        if unknown or not self.kinds:
            raise BadRequest(
                f"unknown hook kinds {unknown}", hint=f"use some of {', '.join(kinds)}", field="hooks"
            )
        for name, words in (("payload", get_args(Payload)), ("overflow", get_args(Overflow))):
            if getattr(self, name) not in words:
                raise BadRequest(
                    f"{name} {getattr(self, name)!r} is not served",
                    hint=f"use one of {', '.join(words)}",
                    field=name,
                )
        if self.phase not in (None, *get_args(Phase)):
            raise BadRequest(
                f"phase {self.phase!r} is not served",
                hint=f"use one of {', '.join(get_args(Phase))}, or none",
                field="phase",
            )
        for name, least, hint in (
            ("every", 1, "give 1 for each step, 10 for each tenth"),
            ("queue", 0, "give a number of events, 0 for the server's bound"),
            ("sample", 0, "give a number of elements, 0 for all"),
            ("start", 0, "steps are counted from 0"),
            ("stop", 1, "steps are counted from 0; give the first that is watched no more"),
            ("max_rate", 0, "give events a second, 0 for no limit"),
            ("block_ms", 0, "give milliseconds"),
            ("keep", 0, "give seconds, 0 to end with the reader"),
        ):
            value = getattr(self, name)
            if value is not None and not (value >= least and math.isfinite(value)):
                raise BadRequest(f"{name} is {value}", hint=hint, field=name)
        if self.start is not None and self.stop is not None and self.start >= self.stop:
            raise BadRequest(
                f"it would begin at step {self.start} and end before step {self.stop}",
                hint="give a stop after start",
                field="stop",
            )
        parse_index(self.index)
        if self.index and self.payload == "none":
            raise BadRequest(
                "a part of what is not looked at", hint="give a payload, or no index", field="index"
            )
        if self.dtype and self.payload != "tensor":
            raise BadRequest(
                f"payload {self.payload} is not cast", hint='give dtype with payload "tensor"', field="dtype"
            )
        if self.dtype:
            cast_target(self.dtype)
        if self.keep and not SHORTEST <= self.keep <= LONGEST:
            raise BadRequest(
                f"it cannot be kept for {self.keep:g} s",
                hint=f"give {SHORTEST:g} to {LONGEST:,.0f} seconds, 0 to end with the reader",
                field="keep_seconds",
            )
        if (self.overflow == "block") != (self.block_ms > 0):
            raise BadRequest(
                f"overflow {self.overflow} with a bound of {self.block_ms:g} ms",
                hint='give block_ms above 0 with overflow "block", and only there',
                field="block_ms",
            )
