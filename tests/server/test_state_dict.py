"""The state_dict against PyTorch's own: keys, reports, loads; and that a refused load changes nothing."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from modscope_server.errors import (
    DtypeMismatch,
    KeysMismatch,
    NotFinite,
    ShapeMismatch,
    UnknownDtype,
)
from modscope_server.inspection.backup import same_bits
from modscope_server.inspection.state_dict import check_load, entries
from tests.models import MLP, WRAPPED, ZOO, Entry
from tests.server.state_dict_support import copies, load, other_values, same_states, specs_of

READABLE = [entry for entry in ZOO.values() if entry.name not in ("lazy", "meta")]


def live_tensors(root: nn.Module) -> list[Tensor]:
    return [*root.parameters(), *root.buffers()]


@pytest.mark.parametrize("entry", [*ZOO.values(), *WRAPPED.values()], ids=lambda entry: entry.name)
def test_entries_are_those_of_pytorch(entry: Entry) -> None:
    model = entry.build()
    own = model.state_dict()
    found, not_carried = entries(model)
    assert [key for key, _ in found] == list(own)
    assert not_carried == []
    for key, tensor in found:
        if not nn.parameter.is_lazy(tensor):
            assert not tensor.requires_grad
            assert tensor.data_ptr() == own[key].data_ptr()


@pytest.mark.parametrize("entry", [*READABLE, *WRAPPED.values()], ids=lambda entry: entry.name)
def test_save_change_load_is_as_before(entry: Entry) -> None:
    model, twin = entry.build(), entry.build()
    saved = copies(model)
    before = live_tensors(model)
    changed = other_values(model)
    assert load(model, changed) == ([], [])
    twin.load_state_dict(changed)
    assert same_states(copies(model), copies(twin))
    assert load(model, saved) == ([], [])
    assert same_states(copies(model), saved)
    assert all(one is other for one, other in zip(live_tensors(model), before, strict=True))


@pytest.mark.parametrize("entry", READABLE, ids=lambda entry: entry.name)
def test_missing_and_unexpected_are_as_pytorch_reports_them(entry: Entry) -> None:
    model, twin = entry.build(), entry.build()
    state: OrderedDict[str, Tensor] = OrderedDict(other_values(model))
    if entry.name == "parametrized":  # without versions the old spectral_norm takes it for a file of its past
        state._metadata = twin.state_dict()._metadata  # type: ignore[attr-defined]
    keys = list(state)
    for key in keys[:: max(2, len(keys) // 3)]:
        del state[key]
    for name in ("nothing", "w1.nothing", "nothing.here", f"{keys[-1]}.below", f"{keys[0]}x", "w1"):
        state.setdefault(name, torch.ones(1))
    want = twin.load_state_dict(state, strict=False)
    assert load(model, state, strict=False) == (want.missing_keys, want.unexpected_keys)
    assert same_states(copies(model), copies(twin))
    before = copies(model)
    with pytest.raises(KeysMismatch) as caught:
        load(model, state)
    assert "unexpected: nothing, w1.nothing, nothing.here" in caught.value.message
    assert "strict=False" in caught.value.hint
    assert same_states(copies(model), before)


def test_the_counter_of_a_norm_may_be_missing_as_in_pytorch() -> None:
    model, twin = ZOO["buffers"].build(), ZOO["buffers"].build()
    state = other_values(model)
    del state["norm.num_batches_tracked"]
    want = twin.load_state_dict(state)
    assert (want.missing_keys, load(model, state)) == ([], ([], []))
    assert same_states(copies(model), copies(twin))


def test_every_wrong_shape_is_told_at_once() -> None:
    model = MLP()
    before = copies(model)
    state = copies(model) | {"w1.weight": torch.zeros(5, 4), "w3.bias": torch.zeros(2)}
    with pytest.raises(ShapeMismatch) as caught:
        load(model, state)
    for part in ("2 of 6", "w1.weight is [3, 1], got [5, 4]", "w3.bias is [1], got [2]"):
        assert part in caught.value.message
    with pytest.raises(ShapeMismatch):
        load(model, {"w1.weight": torch.zeros(1, 3)}, strict=False)
    assert same_states(copies(model), before)


def test_one_element_loads_into_a_scalar_as_in_pytorch() -> None:
    model, twin = ZOO["dtypes"].build(), ZOO["dtypes"].build()
    state = {"scale": torch.tensor([7.0])}
    twin.load_state_dict(state, strict=False)
    load(model, state, strict=False)
    assert same_states(copies(model), copies(twin))
    with pytest.raises(ShapeMismatch):
        load(model, {"scale": torch.tensor([7.0, 8.0])}, strict=False)


def test_a_dtype_may_widen_or_round_but_never_lose_a_value() -> None:
    model = nn.Module()
    for name in ("float16", "float32", "complex64", "int32", "bool"):
        model.register_buffer(name, torch.zeros(2, dtype=getattr(torch, name)))
    for name, given in (
        ("float16", torch.tensor([0.1, 65519.0], dtype=torch.float64)),
        ("float32", torch.tensor([1, 2**40])),
        ("float32", torch.tensor([math.nan, -math.inf], dtype=torch.float64)),
        ("complex64", torch.tensor([1.5, -2.0])),
        ("int32", torch.tensor([1, -(2**31)])),
        ("bool", torch.tensor([1, 0])),
    ):
        load(model, {name: given}, strict=False)
        own = model.get_buffer(name)
        assert same_bits(own, given.to(own.dtype))
    before = copies(model)
    for name, given, error, text in (
        ("float16", torch.tensor([1.0, 1e30]), NotFinite, "float16 is float16 and cannot take 1.0"),
        ("float32", torch.tensor([1.0, 1e300], dtype=torch.float64), NotFinite, "1e+300 at [1]"),
        ("float32", torch.tensor([1 + 0j, 1j]), DtypeMismatch, "float32 is float32, got complex64"),
        ("int32", torch.tensor([1.0, 2.0]), DtypeMismatch, "int32 is int32, got float32"),
        ("int32", torch.tensor([0, 2**31]), DtypeMismatch, "the dtype holds"),
        ("bool", torch.tensor([0, 2]), DtypeMismatch, "the dtype holds 0 to 1"),
    ):
        good = torch.full((2,), 1.0)
        with pytest.raises(error) as caught:
            load(model, {"complex64": good, name: given}, strict=False)
        assert text in caught.value.message or "beyond" in caught.value.message
    assert same_states(copies(model), before)
    with pytest.raises(UnknownDtype):
        check_load(model, [("float32", "float33", (2,))], strict=False)
    with pytest.raises(DtypeMismatch, match="2 of 2"):
        check_load(model, [("int32", "float32", (2,)), ("bool", "complex64", (2,))], strict=False)


@pytest.mark.parametrize("name", WRAPPED)
def test_keys_load_raw_and_without_wrapper_prefixes(name: str) -> None:
    model = WRAPPED[name].build()
    plain = nn.Sequential(MLP(), nn.BatchNorm1d(1))
    state = other_values(plain)
    extra = {"n_averaged": torch.tensor(4)} if name == "averaged" else {}
    assert load(model, state | extra) == ([], [])
    raw = dict(model.state_dict())
    assert all(
        same_bits(raw[key], state[short]) for key, short in zip(list(raw)[-len(state) :], state, strict=True)
    )
    assert load(model, {key: tensor.clone() for key, tensor in raw.items()}) == ([], [])
    both = state | {key: tensor.clone() for key, tensor in raw.items()}
    plan = check_load(model, specs_of(both), strict=False)
    assert set(plan.names) == set(raw)
    if name == "checkpointed":
        long = {key.replace("0.", "0._checkpoint_wrapped_module."): tensor for key, tensor in state.items()}
        assert load(model, long) == ([], [])


def test_tied_keys() -> None:
    model, twin = ZOO["tied"].build(), ZOO["tied"].build()
    state = other_values(model)
    assert {"embed.weight", "decode.weight", "mirror.decode.weight"} <= set(state)
    load(model, state)
    assert model.embed.weight is model.decode.weight  # type: ignore[union-attr]
    del state["decode.weight"]
    with pytest.raises(KeysMismatch, match=r"1 missing: decode\.weight"):
        load(model, state)
    # The last of differing values stays, as in PyTorch.
    state["mirror.decode.weight"] = torch.full((7, 4), 5.0)
    want = twin.load_state_dict(state, strict=False)
    assert load(model, state, strict=False) == (want.missing_keys, [])
    assert same_states(copies(model), copies(twin))


class WithExtra(nn.Linear):
    """Has extra state of its own, as quantised and transformer-engine layers do."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.extra: Any = {"scale": 3}

    def get_extra_state(self) -> Any:
        return self.extra

    def set_extra_state(self, state: Any) -> None:
        raise AssertionError("nothing was sent for it")


@pytest.mark.parametrize("extra", [{"scale": 3}, torch.ones(1)], ids=["dict", "tensor"])
def test_extra_state_is_told_and_neither_missing_nor_unexpected(extra: Any) -> None:
    layer = WithExtra()
    layer.extra = extra
    model = nn.Sequential(layer)
    found, not_carried = entries(model)
    assert [key for key, _ in found] == ["0.weight", "0.bias"]
    assert not_carried == ["0._extra_state"]
    assert load(model, other_values(model)) == ([], [])
    plan = check_load(model, [*specs_of(copies(model)), ("0._extra_state", "uint8", (4,))])
    assert plan.missing == plan.unexpected == ()


class Breaks(nn.Linear):
    """Loads its weight, binds its bias anew, and then gives up."""

    raised: type[BaseException] = RuntimeError

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *rest)
        self.bias = nn.Parameter(torch.zeros(7))
        raise self.raised("half way")


@pytest.mark.parametrize("raised", [RuntimeError, ValueError, KeyboardInterrupt])
def test_a_load_that_fails_in_the_middle_changes_nothing(raised: type[BaseException]) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), Breaks(2, 2))
    Breaks.raised = raised
    before, tensors = copies(model), live_tensors(model)
    with pytest.raises(KeysMismatch if raised is RuntimeError else raised, match="half way"):
        load(model, other_values(model))
    assert same_states(copies(model), before)
    assert all(one is other for one, other in zip(live_tensors(model), tensors, strict=True))


class Renames(nn.Linear):
    """Still takes the name that its weight had once."""

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        if f"{prefix}kernel" in state_dict:
            state_dict[f"{prefix}weight"] = state_dict.pop(f"{prefix}kernel")
        super()._load_from_state_dict(state_dict, prefix, *rest)


def test_a_module_that_loads_in_its_own_way_has_the_last_word() -> None:
    model, twin = (nn.Sequential(Renames(2, 2), nn.Linear(2, 2)) for _ in range(2))
    state: dict[str, Tensor] = other_values(model)
    state["0.kernel"] = state.pop("0.weight")
    twin.load_state_dict(state)
    assert load(model, state) == ([], [])
    assert same_states(copies(model), copies(twin))
    before = copies(model)
    del state["0.kernel"]
    with pytest.raises(KeysMismatch, match=r"1 missing: 0\.weight"):
        load(model, {key: tensor + 1 for key, tensor in state.items()})
    assert same_states(copies(model), before)
    with pytest.raises(KeysMismatch, match=r"1 unexpected: 1\.kernel"):
        check_load(model, [*specs_of(before), ("1.kernel", "float32", (2, 2))])
    with pytest.raises(ShapeMismatch, match=r"size mismatch for 0\.weight"):
        load(model, {"0.kernel": torch.zeros(3, 3)}, strict=False)
    assert same_states(copies(model), before)


def test_weight_norm_takes_what_its_predecessor_saved() -> None:
    old = nn.Sequential(nn.Linear(2, 3))
    with pytest.warns(FutureWarning, match="deprecated"):
        nn.utils.weight_norm(old[0])
    new = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 3)))
    assert load(new, copies(old)) == ([], [])
    assert same_bits(copies(new)["0.parametrizations.weight.original1"], copies(old)["0.weight_v"])


def test_versions_are_the_models_own() -> None:
    seen: list[Any] = []

    class Versioned(nn.Linear):
        _version = 3

        def _load_from_state_dict(self, state_dict: Any, prefix: str, local: Any, *rest: Any) -> None:
            seen.append(local.get("version"))
            super()._load_from_state_dict(state_dict, prefix, local, *rest)

    model = Versioned(1, 1)
    load(model, other_values(model))
    assert seen == [3]
