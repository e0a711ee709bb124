"""Messages of ParameterService as the tests make and read them."""

from __future__ import annotations

import torch

from modscope_server.inspection.tensors import to_data


def bits(tensor: torch.Tensor) -> tuple[str, tuple[int, ...], bytes]:
    data = to_data(tensor)
    return data.dtype, data.shape, bytes(data.data)
