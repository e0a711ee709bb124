"""show: one module, parameter or buffer whole."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from modscope.tensor import TensorData, digest
from tests.client.cli.conftest import Live, Modscope


@pytest.mark.parametrize("path", ["", "body", "embed", "embed.weight", "head.weight", "body.0.bias", "mask"])
def test_what_is_printed(
    path: str, live: Live, modscope: Modscope, golden: Callable[[str, str], None]
) -> None:
    outcome = modscope("show", path)
    assert (outcome.code, outcome.err) == (0, "")
    text = outcome.out
    for module in (live.model, live.model.body):
        text = text.replace(f"{module!r}\n", f"<repr of {type(module).__name__}>\n")
    golden(f"show_{path or 'root'}", text)


def test_a_module_ends_in_what_print_gives(live: Live, modscope: Modscope) -> None:
    assert modscope("show").out.endswith(f"\n\n{live.model!r}\n")
    assert modscope("show", "body", "-o", "json").json["repr"] == repr(live.model.body)


def test_a_tensor_has_statistics_and_digest(live: Live, modscope: Modscope) -> None:
    shown = modscope("show", "scale", "-o", "json").json
    scale = live.model.scale.detach()
    assert shown["digest"] == digest(TensorData("float32", (4,), scale.numpy().tobytes()))
    assert shown["stats"]["norm"] == pytest.approx(float(torch.linalg.vector_norm(scale)))
    assert (shown["path"], shown["shape"], shown["step"]) == ("scale", [4], 0)
    assert modscope("show", "mask", "-o", "json").json["persistent"] is False


def test_neither_module_nor_tensor(live: Live, modscope: Modscope) -> None:
    outcome = modscope("show", "body.0.wieght")
    assert outcome.code == 3
    assert "no module, parameter or buffer 'body.0.wieght'" in outcome.err
    assert "body.0.weight" in outcome.err
