"""The client's mutating calls and transfers against the real server, PyTorch the oracle."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import safetensors.torch
import torch
from torch import nn

from modscope.tensor import TensorData
from modscope_client.errors import (
    FailedPrecondition,
    InvalidArgument,
)
from modscope_client.types import LoadResult
from tests.client.served_net import Net, Stop, digest_of, net, stop_at
from tests.end_to_end.serving import Served, bits, fingerprint, served


@pytest.fixture
def live() -> Iterator[Served]:
    torch.manual_seed(0)
    module = Net()
    with served(module, torch.optim.Adam(module.parameters())) as made:
        yield made


@pytest.mark.parametrize(
    "make",
    [
        lambda: numpy.arange(4, dtype="f4"),
        lambda: torch.arange(4).float(),
        lambda: nn.Parameter(torch.arange(4).float()),
        lambda: torch.arange(8).float()[::2] / 2,
        lambda: numpy.arange(4, dtype=">f4"),
        lambda: [0, 1, 2, 3],
        lambda: (0.0, 1.0, 2.0, 3.0),
        lambda: TensorData("float32", (4,), numpy.arange(4, dtype="f4").tobytes()),
    ],
)
def test_what_can_be_written(live: Served, make: Any) -> None:
    identity, before = id(net(live).head.bias), digest_of(net(live).head.bias)
    operation = live.model.write("head.bias", make())
    assert net(live).head.bias.tolist() == [0, 1, 2, 3] and id(net(live).head.bias) == identity
    assert (operation.kind, operation.model, operation.paths, operation.outcome) == (
        "write",
        "model",
        ("head.bias",),
        "applied",
    )
    assert operation.step == 0 and not operation.undone and not operation.not_undoable
    assert operation.before == {"head.bias": before}
    assert operation.after == {"head.bias": digest_of(torch.arange(4).float())}
    assert operation.who.startswith("operator")


def test_writes_of_other_dtypes_and_sizes(live: Served) -> None:
    half = torch.randn(3).bfloat16()
    live.model.write("brief", half)
    assert torch.equal(net(live).brief, half)
    large = torch.randn(600, 1000)
    live.model.parameter("large").write(large)
    assert torch.equal(net(live).large, large)
    live.model.write("head.bias", numpy.arange(4.0), cast=True)
    live.model.write("head.weight", fill=0.5)
    assert net(live).head.bias.tolist() == [0, 1, 2, 3] and (net(live).head.weight == 0.5).all()


def test_refused_writes_change_nothing(live: Served) -> None:
    before = fingerprint(live.module)
    for array, options, reason in (
        (numpy.zeros(5, "f4"), {}, "SHAPE_MISMATCH"),
        (numpy.zeros(4), {}, "DTYPE_MISMATCH"),
        (numpy.full(4, numpy.nan, "f4"), {}, "NOT_FINITE"),
        (numpy.full(4, 1j, "c8"), {"cast": True}, "DTYPE_MISMATCH"),
        (None, {"fill": float("inf")}, "NOT_FINITE"),
    ):
        with pytest.raises(InvalidArgument) as refusal:
            live.model.write("head.bias", array, **options)
        assert refusal.value.reason == reason
    assert fingerprint(live.module) == before
    live.model.write("head.bias", numpy.full(4, numpy.nan, "f4"), allow_non_finite=True)
    assert net(live).head.bias.isnan().all()


def test_freezing(live: Served) -> None:
    operation = live.model.freeze("body")
    assert operation.paths == tuple(f"body.{name}" for name, _ in net(live).body.named_parameters())
    assert [p.path for p in live.model.parameters(requires_grad=False)] == list(operation.paths)
    live.model.unfreeze(type="Linear")
    assert {path for path, p in live.module.named_parameters() if not p.requires_grad} == {
        "body.1.weight",
        "body.1.bias",
    }
    live.model.module("body").unfreeze()
    live.model.parameter("large").freeze()
    assert [path for path, p in live.module.named_parameters() if not p.requires_grad] == ["large"]
    with pytest.raises(FailedPrecondition) as refusal:
        live.model.freeze()
    assert refusal.value.reason == "WOULD_BREAK_TRAINING"
    live.model.freeze(force=True)
    assert not any(p.requires_grad for p in live.module.parameters())


def init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, 0.0, 0.02)


def test_reinitialising(live: Served) -> None:
    torch.manual_seed(3)
    expected = Net()
    with torch.no_grad():
        for twin, mine in zip(expected.parameters(), live.module.parameters(), strict=True):
            twin.copy_(mine)
    torch.manual_seed(7)
    expected.apply(init_weights)
    plan = live.model.reinitialize(
        type=nn.Linear, parameter="weight", scheme="normal_", seed=7, mean=0, std=0.02, dry_run=True
    )
    assert plan.outcome == "dry_run"
    assert not torch.equal(net(live).head.weight, expected.head.weight)
    done = live.model.reinitialize(
        type=nn.Linear, parameter="weight", scheme="normal_", seed=7, mean=0, std=0.02
    )
    assert done.paths == plan.paths == ("body.0.weight", "head.weight", "twin.weight")
    assert torch.equal(net(live).head.weight, expected.head.weight)
    assert torch.equal(*(one.get_parameter("body.0.weight") for one in (net(live), expected)))
    paths = live.model.module("body").reinitialize(scheme="zeros_", parameter="bias").paths
    assert paths == ("body.0.bias", "body.1.bias")


def test_a_state_dict_down_and_up(live: Served, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    state = live.module.state_dict()
    found = live.model.state_dict(progress=lambda done, total: told.append((done, total)))
    assert list(found) == list(state)
    assert {key: bits(array) for key, array in found.items()} == {key: bits(t) for key, t in state.items()}
    total = sum(tensor.nbytes for tensor in state.values())
    assert told[0] == (0, total) and told[-1] == (total, total) and told == sorted(told)
    keys = live.model.state_dict_keys()
    assert [(spec.key, spec.dtype, spec.shape) for spec in keys.entries] == [
        (key, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)) for key, tensor in state.items()
    ]

    saved = live.model.save_state_dict(tmp_path / "f.safetensors")
    assert saved.entries == keys.entries
    loaded = safetensors.torch.load_file(tmp_path / "f.safetensors")
    assert {key: bits(tensor) for key, tensor in loaded.items()} == {key: bits(t) for key, t in state.items()}

    before = {key: tensor.clone() for key, tensor in state.items()}
    for source in (found, tmp_path / "f.safetensors", before):
        with torch.no_grad():
            for tensor in state.values():
                tensor.zero_()
        result = live.model.load_state_dict(source)
        assert isinstance(result, LoadResult) and result.operation.kind == "load_state_dict"
        assert (result.missing_keys, result.unexpected_keys) == ([], [])
        assert all(torch.equal(state[key], before[key]) for key in state)


def test_keys_as_pytorch_reports_them(live: Served) -> None:
    partial: dict[str, Any] = {"head.bias": torch.ones(4), "nowhere": torch.ones(1)}
    theirs = Net().load_state_dict(partial, strict=False)
    result = live.model.load_state_dict(partial, strict=False)
    assert (result.missing_keys, result.unexpected_keys) == (theirs.missing_keys, theirs.unexpected_keys)
    assert net(live).head.bias.tolist() == [1] * 4
    before = fingerprint(live.module)
    with pytest.raises(FailedPrecondition, match="nowhere") as refusal:
        live.model.load_state_dict(partial)
    assert refusal.value.reason == "KEYS_MISMATCH"
    with pytest.raises(InvalidArgument) as wrong:
        live.model.load_state_dict(
            {**live.module.state_dict(), "brief": torch.ones(4), "large": torch.ones(2)}
        )
    assert (
        wrong.value.reason == "SHAPE_MISMATCH" and "brief" in str(wrong.value) and "large" in str(wrong.value)
    )
    assert fingerprint(live.module) == before


def test_a_transfer_that_breaks_off_leaves_nothing(live: Served, tmp_path: Path) -> None:
    target = tmp_path / "f.safetensors"
    state = {key: tensor.clone() + 1 for key, tensor in live.module.state_dict().items()}
    before = fingerprint(live.module)
    for at in (0, 1 << 20):
        with pytest.raises(Stop):
            live.model.save_state_dict(target, progress=stop_at(at))
        with pytest.raises(Stop):
            live.model.state_dict(progress=stop_at(at))
        with pytest.raises(Stop):
            live.model.load_state_dict(state, progress=stop_at(at))
    assert os.listdir(tmp_path) == []
    assert fingerprint(live.module) == before
    live.model.load_state_dict(state)
    assert torch.equal(net(live).large, state["large"])


def test_a_dtype_that_a_file_cannot_hold_leaves_no_file(tmp_path: Path) -> None:
    module = nn.Module()
    module.register_buffer("z", torch.zeros(2, dtype=torch.complex128))
    with served(module) as live:
        with pytest.raises(InvalidArgument, match=r"z \(complex128\)") as refusal:
            live.model.save_state_dict(tmp_path / "f")
        assert refusal.value.reason == "UNKNOWN_DTYPE" and os.listdir(tmp_path) == []
        assert bits(live.model.state_dict()["z"]) == bits(module.get_buffer("z"))
