"""Arrays as text for people: a heading, then the elements, the middle of a large one left out."""

from __future__ import annotations

from typing import Any

from modscope.tensor import TensorData
from modscope_client.cli.messages import styled
from modscope_client.cli.text import byte_count, one_line, shape_text

__all__ = ["array_text", "elements_text"]


def array_text(name: str, array: Any, step: int | None = None) -> str:
    """Name, dtype, shape and step on a line, the elements below."""
    dtype = array.dtype if isinstance(array, TensorData) else array.dtype.name
    told = (
        styled(one_line(name), bold=True),
        f"{styled(dtype, fg='cyan')} {shape_text(array.shape)}",
        "" if step is None else styled(f"step {step:,}", dim=True),
    )
    return f"{'  '.join(filter(None, told))}\n{elements_text(array)}\n"


def elements_text(array: Any) -> str:
    """The elements as numpy prints them, those of more than 1,000 in part."""
    if isinstance(array, TensorData):
        return f"{byte_count(len(array.data))} in a dtype that numpy lacks; -o json gives them in base64"
    import numpy

    return numpy.array2string(array, separator=", ", max_line_width=100)
