"""OperationService: what the ledger tells, and undoing."""

from __future__ import annotations

import logging
import threading
from typing import Any

import pytest
import torch
from torch import nn

from modscope.v1 import operation_pb2, parameter_service_pb2, state_dict_service_pb2, tensor_pb2
from modscope_server import Limits
from tests.server.rpc import Rpc, refused, serving, spec, uploaded

OPTIONS = operation_pb2.ChangeOptions


def fill(rpc: Rpc, path: str, value: float, **options: Any) -> Any:
    first = parameter_service_pb2.WriteTensorRequest(
        path=path, fill=tensor_pb2.Scalar(real=value), options=OPTIONS(**options)
    )
    return rpc.WriteTensor([first]).operation


def operations(rpc: Rpc) -> list[Any]:
    return list(rpc.ListOperations().operations)


def digest_of(rpc: Rpc, path: str) -> str:
    digest: str = rpc.GetTensor(path=path).digest
    return digest


def test_every_change_is_told_newest_last() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    with serving(model) as rpc:
        made = [
            fill(rpc, "0.weight", 1.0),
            rpc.Freeze(glob="0").operation,
            rpc.Unfreeze(glob="0.bias").operation,
            rpc.Reinitialize(glob="1").operation,
            rpc.Undo(id="op-1").operation,
        ]
        listed = operations(rpc)
        assert [one.id for one in listed] == [one.id for one in made]
        assert listed[2:] == made[2:]
        first = listed[0]
        assert (made[0].undone, first.undone, first.not_undoable) == (
            False,
            True,
            "op-5 has undone it already",
        )
        assert rpc.GetOperation(id="op-1").operation == first
    kinds = [(one.id, one.kind, list(one.paths), one.outcome, one.undoes) for one in made]
    assert kinds == [
        ("op-1", "write", ["0.weight"], "applied", ""),
        ("op-2", "freeze", ["0.weight", "0.bias"], "applied", ""),
        ("op-3", "unfreeze", ["0.bias"], "applied", ""),
        ("op-4", "reinitialize", ["1.weight", "1.bias"], "applied", ""),
        ("op-5", "undo", ["0.weight"], "applied", "op-1"),
    ]
    assert all(one.who.startswith("operator ") and one.time.seconds for one in made)


def test_digests_of_before_and_after_are_those_that_reading_gives() -> None:
    model = nn.Linear(3, 2)
    with serving(model) as rpc:
        before = digest_of(rpc, "weight")
        write = fill(rpc, "weight", 1.0)
        after = digest_of(rpc, "weight")
        assert before != after
        assert (dict(write.before), dict(write.after)) == ({"weight": before}, {"weight": after})
        undo = rpc.Undo(id=write.id).operation
        assert (dict(undo.before), dict(undo.after)) == ({"weight": after}, {"weight": before})
        assert digest_of(rpc, "weight") == before


def test_a_loaded_state_dict_is_undone_whole() -> None:
    model, other = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    with torch.no_grad():
        other.weight.fill_(2.0)
        assert other.num_batches_tracked is not None
        other.num_batches_tracked.fill_(7)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    entries = [
        tensor_pb2.TensorHeader(key=key, spec=spec(value)) for key, value in other.state_dict().items()
    ]

    def requests() -> Any:
        yield state_dict_service_pb2.UploadRequest(entries=entries)
        for position, value in enumerate(other.state_dict().values()):
            data = value.numpy().tobytes()
            yield state_dict_service_pb2.UploadRequest(begins=position, data=data)

    with serving(model) as rpc:
        operation = rpc.Upload(requests()).operation
        assert list(operation.paths) == list(before)
        assert set(operation.before) == set(operation.after) == set(before)
        assert all(torch.equal(value, other.state_dict()[key]) for key, value in model.state_dict().items())
        rpc.Undo(id=operation.id)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_pages() -> None:
    with serving(nn.Linear(1, 1)) as rpc:
        ids = [fill(rpc, "weight", float(number)).id for number in range(5)]
        found, token = [], ""
        while True:
            page = rpc.ListOperations(page_size=2, page_token=token)
            assert len(page.operations) <= 2
            found += [one.id for one in page.operations]
            token = page.next_page_token
            if not token:
                break
        assert found == ids


def test_a_page_ends_early_where_it_would_be_larger_than_a_message() -> None:
    model = nn.ModuleList([nn.Linear(1, 1, bias=False) for _ in range(4000)])
    with serving(model) as rpc:
        ids = [rpc.Reinitialize(scheme="ones_").operation.id for _ in range(10)]
        found, token, pages = [], "", 0
        while True:
            page = rpc.ListOperations(page_token=token)
            assert page.ByteSize() <= 4 << 20
            pages += 1
            found += [one.id for one in page.operations]
            token = page.next_page_token
            if not token:
                break
    assert found == ids
    assert pages > 1


def test_one_operation_on_very_many_tensors_fits_into_a_message() -> None:
    model = nn.ModuleList([nn.Linear(1, 1, bias=False) for _ in range(30_000)])
    with serving(model) as rpc:
        operation = rpc.Reinitialize(scheme="ones_").operation
        assert len(operation.paths) == 30_000
        assert not operation.before
        assert "the digests of so many tensors" in operation.notes[-1]
        rpc.Undo(id=operation.id)


def test_what_the_ledger_forgets_is_counted() -> None:
    with serving(nn.Linear(1, 1), limits=Limits(operations=2)) as rpc:
        for number in range(5):
            fill(rpc, "weight", float(number))
        page = rpc.ListOperations()
        assert ([one.id for one in page.operations], page.forgotten) == (["op-4", "op-5"], 3)


def test_the_undo_store_says_what_it_let_go() -> None:
    model = nn.Linear(256, 1, bias=False)
    with serving(model, limits=Limits(undo_bytes=2048)) as rpc:
        first, _, third = (fill(rpc, "weight", float(number)) for number in range(3))
        assert list(third.notes) == [f"cannot be undone any more, for limits.undo_bytes: {first.id}"]
        for id in ("op-3", "op-2"):
            rpc.Undo(id=id)
        refusal = refused(lambda: rpc.Undo(id=first.id))
        assert (refusal.code, refusal.reason) == ("FAILED_PRECONDITION", "NOT_UNDOABLE")
        assert "limits.undo_bytes keeps 2,048 bytes" in refusal.message
        assert "limits.undo_bytes" in rpc.GetOperation(id=first.id).operation.not_undoable
    assert torch.equal(model.weight, torch.zeros(1, 256))


def test_an_operation_says_what_overtook_it() -> None:
    with serving(nn.Linear(2, 1)) as rpc:
        first, second = fill(rpc, "weight", 1.0), fill(rpc, "weight", 2.0)
        fill(rpc, "bias", 2.0)
        assert (
            rpc.GetOperation(id=first.id).operation.not_undoable
            == f"{second.id} (write) has changed the same since"
        )
        refusal = refused(lambda: rpc.Undo(id=first.id))
        assert (refusal.reason, refusal.hint) == (
            "NOT_UNDOABLE",
            f"undo that first: modscope undo {second.id}",
        )


def test_undo_and_redo_go_on_for_ever() -> None:
    model = nn.Linear(2, 1)
    before = model.weight.detach().clone()
    with serving(model) as rpc:
        last = fill(rpc, "weight", 1.0).id
        for turn in range(6):
            last = rpc.Undo(id=last).operation.id
            assert torch.equal(model.weight, before if turn % 2 == 0 else torch.ones(1, 2))
        assert [one.undone for one in operations(rpc)] == [False, True, False, True, False, True, False]


def test_a_request_id_is_carried_out_once() -> None:
    model = nn.Linear(2, 1)
    with serving(model) as rpc:
        first = fill(rpc, "weight", 1.0, request_id="a")
        fill(rpc, "weight", 2.0)
        again = fill(rpc, "weight", 1.0, request_id="a")
        assert (again.id, again.request_id) == (first.id, "a")
        assert torch.equal(model.weight, torch.full((1, 2), 2.0))
        assert len(operations(rpc)) == 2
        undo = rpc.Undo(id="op-2", options=OPTIONS(request_id="b")).operation
        assert rpc.Undo(id="op-2", options=OPTIONS(request_id="b")).operation.id == undo.id


def test_two_calls_with_one_request_id_at_once() -> None:
    model = nn.Linear(2, 1)
    with serving(model) as rpc:
        ids: list[str] = []
        start = threading.Barrier(8)

        def call() -> None:
            start.wait()
            ids.append(rpc.Reinitialize(options=OPTIONS(request_id="a")).operation.id)

        threads = [threading.Thread(target=call) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert ids == ["op-1"] * 8
        assert len(operations(rpc)) == 1


def test_a_refused_call_leaves_its_request_id_free() -> None:
    model = nn.Linear(2, 1)
    with serving(model) as rpc:
        assert (
            refused(lambda: rpc.Freeze(glob="nothing", options=OPTIONS(request_id="a"))).reason == "NO_MATCH"
        )
        assert rpc.Freeze(glob="bias", options=OPTIONS(request_id="a")).operation.id == "op-1"
        dry = rpc.Freeze(glob="weight", force=True, options=OPTIONS(request_id="b", dry_run=True)).operation
        assert (dry.outcome, model.weight.requires_grad) == ("dry_run", True)
        assert (
            rpc.Freeze(glob="weight", force=True, options=OPTIONS(request_id="b")).operation.outcome
            == "applied"
        )


def test_a_change_that_raises_while_it_is_made_is_told_as_failed() -> None:
    class Odd(nn.Linear):
        def reset_parameters(self) -> None:
            with torch.no_grad():
                self.weight.fill_(5.0)
                if hasattr(self, "ready"):
                    raise ValueError("no")

    model = nn.Sequential(nn.Linear(2, 1), Odd(2, 1))
    model[1].register_buffer("ready", torch.ones(1))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with serving(model) as rpc:
        assert refused(lambda: rpc.Reinitialize()).reason == "SCHEME_UNSUITABLE"
        (failed,) = operations(rpc)
        assert (failed.outcome, failed.not_undoable) == ("failed", "it changed nothing")
        assert "ValueError: no" in failed.notes[0]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_one_line_of_the_log_for_each_operation(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "modscope_server"), serving(nn.Linear(2, 1)) as rpc:
        fill(rpc, "weight", 1.0)
        rpc.Undo(id="op-1")
    lines = [one.getMessage() for one in caplog.records if one.getMessage().startswith("op-")]
    assert [line.partition(" by ")[0] for line in lines] == [
        "op-1: write of model (1 tensors) at step 0",
        "op-2: undo of model (1 tensors) at step 0",
    ]
    assert all(line.endswith(", applied") for line in lines)


def test_the_ledger_of_each_model_is_its_own() -> None:
    with serving({"a": nn.Linear(2, 1), "b": nn.Linear(2, 1)}) as rpc:
        rpc.Freeze(model="a", glob="bias")
        rpc.Freeze(model="b", glob="bias")
        assert [one.id for one in rpc.ListOperations(model="b").operations] == ["op-2"]
        assert refused(lambda: rpc.GetOperation(model="a", id="op-2")).reason == "UNKNOWN_OPERATION"
        assert refused(lambda: rpc.Undo(model="a", id="op-2")).reason == "UNKNOWN_OPERATION"


def test_a_write_of_a_large_tensor_has_its_digests(tmp_path: Any) -> None:
    model = nn.Linear(1500, 1500, bias=False)
    value = torch.randn(1500, 1500)
    with serving(model) as rpc:
        first = parameter_service_pb2.WriteTensorRequest(path="weight", spec=spec(value))
        operation = rpc.WriteTensor(uploaded(first, value)).operation
        assert operation.after["weight"] == digest_of(rpc, "weight")
