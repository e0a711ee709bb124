"""The records have the fields of the contract's table, are frozen, and compare by what they tell."""

from __future__ import annotations

import dataclasses

import numpy
import pytest

from modscope_client import types

TABLE = {
    types.ModelInfo: ("name type training step modules parameters trainable_parameters optimizers writable"),
    types.ModuleInfo: (
        "path name type qualified_type training children parameters trainable_parameters aliases"
        " raw_path wrappers repr"
    ),
    types.ParameterInfo: (
        "path shape dtype device numel requires_grad has_grad tied_with optimizer module_type"
        " raw_path unreadable stats"
    ),
    types.BufferInfo: (
        "path shape dtype device numel requires_grad has_grad tied_with optimizer module_type"
        " raw_path unreadable stats persistent"
    ),
    types.Event: "seq step model path type hook call time values dropped raw_path recompute",
    types.ValueInfo: "role key shape dtype stats histogram array note sample",
    types.Stats: "count mean std min max norm zeros nan inf",
    types.Operation: "id kind model paths step who time outcome before after undone notes"
    " request_id undoes not_undoable",
    types.LoadResult: "operation missing_keys unexpected_keys",
    types.OptimizerGroup: "optimizer index lr weight_decay parameters options state_keys strangers"
    " base_lr scheduler",
    types.Snapshot: "name model step time bytes directory parts who notes",
    types.RunStatus: "step steps_per_second state doing metrics pause breaks waiting skipped_steps notes"
    " last_resume",
}
OPERATION = types.Operation("op-1", "write", "model", ("w",), 3, "operator", 1.0, "applied")


@pytest.mark.parametrize("record", TABLE, ids=lambda record: record.__name__)
def test_fields(record: type) -> None:
    assert [field.name for field in dataclasses.fields(record)] == TABLE[record].split()


@pytest.mark.parametrize("name", sorted(set(types.__all__) - {"TensorData"}))
def test_records_are_frozen_documented_and_slotted(name: str) -> None:
    record = getattr(types, name)
    assert dataclasses.is_dataclass(record) and isinstance(record, type)
    assert record.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert record.__doc__ and not record.__doc__.startswith(f"{name}(")
    assert "__slots__" in vars(record)


def test_a_record_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        OPERATION.id = "op-2"  # type: ignore[misc]


def test_records_compare_and_hash_though_they_hold_arrays_and_mappings() -> None:
    def event(array: numpy.ndarray[tuple[int], numpy.dtype[numpy.float64]]) -> types.Event:
        value = types.ValueInfo("output", "", (2,), "float64", array=array)
        return types.Event(0, 0, "model", "w", "Linear", "forward", 0, 1.0, [value], 0)

    assert event(numpy.zeros(2)) == event(numpy.ones(2))
    assert len({event(numpy.zeros(2)), event(numpy.ones(2))}) == 1
    with_digests = dataclasses.replace(OPERATION, before={"w": "sha256:0"})
    assert {with_digests, OPERATION, with_digests} == {with_digests, OPERATION}
    assert hash(types.LoadResult(OPERATION, [], ["x"])) == hash(types.LoadResult(OPERATION, [], ["y"]))


def test_a_token_is_not_shown() -> None:
    server = types.ServerInfo("unix:/s", 1, 0.0, ("model",), False, "0.1.0", token="secret", viewer_token="v")
    assert "secret" not in repr(server) and "viewer_token" not in repr(server)
