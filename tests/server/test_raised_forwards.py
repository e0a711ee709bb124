"""A root whose forward raises: the exception is the user's, whatever others ask for meanwhile."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

from modscope_server.runtime.safepoint import SafePoint

TIMEOUT = 20.0


def test_no_request_puts_a_hook_on_a_root_while_torch_walks_over_them_because_of_an_exception() -> None:
    class Refuses(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise ValueError("the user's own")

    model = Refuses().eval()
    point = SafePoint([model])
    seen: list[object] = []
    for _ in range(2):
        model.register_forward_hook(lambda *call: seen.append(call[-1]), always_call=True)
    asked: list[object] = []

    def ask() -> None:
        for _ in range(20):
            point.run(lambda: model.register_forward_hook(lambda *call: None), timeout=TIMEOUT)
            asked.append(None)

    with torch.no_grad():
        with pytest.raises(ValueError, match="the user's own"):
            model(torch.ones(1))
        asking = threading.Thread(target=ask)
        asking.start()
        while asking.is_alive():
            with pytest.raises(ValueError, match="the user's own"):
                model(torch.ones(1))
    assert len(asked) == 20
    assert set(seen) == {None}
    point.close()
