"""What keeps the hooks of ours out of copies of a model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

__all__ = ["Uncopied"]


class Uncopied:
    """A hook that answers for its own module alone.

    Copied or pickled it becomes a function of the standard library that does nothing, so that no copy
    keeps a server alive, or needs modscope to be loaded.
    """

    __slots__ = ()

    def __deepcopy__(self, memo: dict[int, object]) -> Callable[..., None]:
        return contextlib.nullcontext().__exit__

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (contextlib.nullcontext(), "__exit__")
