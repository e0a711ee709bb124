"""Preconditions: what is refused, with which status, reason and hint; and that nothing has changed then."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

import modscope_server
from modscope.v1 import operation_pb2, operation_service_pb2, parameter_service_pb2, tensor_pb2
from tests.server.change_kinds import CHANGES, Options, transaction, write
from tests.server.rpc import Refused, Rpc, refused, serving
from tests.server.undo_support import OPTIMIZERS, Net, bits, make_model, optimizer_bits, stepper

kinds = pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
UNTRUE = "sha256:" + "0" * 64


class Job(NamedTuple):
    """A model in training, and calls to its server."""

    model: Net
    optimizer: torch.optim.Optimizer
    rpc: Rpc

    @property
    def state(self) -> tuple[Any, ...]:
        """All that a refused call must leave as it is, the ledger included."""
        listed = self.rpc.ListOperations()
        gradients = [None if t.grad is None else t.grad.tolist() for t in self.model.parameters()]
        return (
            bits(self.model),
            optimizer_bits(self.model, self.optimizer),
            gradients,
            list(listed.operations),
        )

    def refused(self, call: Callable[[], Any]) -> Refused:
        """The refusal of a call that changes nothing."""
        before = self.state
        refusal = refused(call)
        assert self.state == before
        return refusal


@pytest.fixture
def job() -> Iterator[Job]:
    model = make_model()
    model.last.weight.requires_grad = False
    optimizer = OPTIMIZERS["adam"]([t for name, t in model.named_parameters() if name != "last.bias"])
    step = stepper(model, optimizer)
    for _ in range(3):
        step()
    with serving(model, optimizer) as rpc:
        yield Job(model, optimizer, rpc)


def digest_of(rpc: Rpc, path: str) -> str:
    digest: str = rpc.GetTensor(path=path).digest
    return digest


@kinds
def test_a_digest_that_is_another(job: Job, change: Callable[[Rpc, Any], Any]) -> None:
    present = digest_of(job.rpc, "first.weight")
    refusal = job.refused(lambda: change(job.rpc, Options(expected={"first.weight": UNTRUE})))
    assert (refusal.code, refusal.reason) == ("FAILED_PRECONDITION", "STALE_DIGEST")
    assert refusal.message == f"first.weight is {present}, not {UNTRUE}"
    assert refusal.hint == "read it again, then decide anew"
    assert refusal.fields == ["options.expected"]


@kinds
def test_digests_that_hold(job: Job, change: Callable[[Rpc, Any], Any]) -> None:
    expected = {path: digest_of(job.rpc, path) for path in ("first.weight", "norm.running_var")}
    assert change(job.rpc, Options(expected=expected)).operation.outcome == "applied"


@kinds
def test_one_of_two_digests_is_another(job: Job, change: Callable[[Rpc, Any], Any]) -> None:
    expected = {"first.weight": digest_of(job.rpc, "first.weight"), "norm.running_var": UNTRUE}
    assert job.refused(lambda: change(job.rpc, Options(expected=expected))).reason == "STALE_DIGEST"


@kinds
def test_a_digest_of_what_is_not_there(job: Job, change: Callable[[Rpc, Any], Any]) -> None:
    refusal = job.refused(lambda: change(job.rpc, Options(expected={"first.wieght": UNTRUE})))
    assert (refusal.code, refusal.reason) == ("NOT_FOUND", "UNKNOWN_PATH")
    assert "first.weight" in refusal.hint


@kinds
def test_a_stale_digest_is_told_in_a_dry_run_too(job: Job, change: Callable[[Rpc, Any], Any]) -> None:
    options = Options(expected={"first.weight": UNTRUE}, dry_run=True)
    assert job.refused(lambda: change(job.rpc, options)).reason == "STALE_DIGEST"


@kinds
def test_a_request_id_that_is_too_long(job: Job, change: Callable[[Rpc, Any], Any]) -> None:
    refusal = job.refused(lambda: change(job.rpc, Options(request_id="x" * 129)))
    assert (refusal.code, refusal.reason) == ("INVALID_ARGUMENT", "BAD_REQUEST")
    assert refusal.fields == ["options.request_id"]
    assert change(job.rpc, Options(request_id="x" * 128)).operation.outcome == "applied"


@kinds
def test_a_request_id_of_another_kind_of_call(job: Job, change: Callable[[Rpc, Any], Any]) -> None:
    first = job.rpc.Freeze(glob="first.bias", options=Options(request_id="a")).operation
    again = change(job.rpc, Options(request_id="b")).operation
    job.rpc.Undo(id=first.id, options=Options(request_id="c"))
    refusal = job.refused(lambda: job.rpc.Undo(id=again.id, options=Options(request_id="b")))
    assert (refusal.code, refusal.reason) == ("INVALID_ARGUMENT", "BAD_REQUEST")
    assert refusal.hint == "choose a new one for each new change"
    assert refusal.message == f"request id 'b' was that of a {again.kind} of model"


def test_a_compare_and_set_that_two_want_goes_to_one(job: Job) -> None:
    expected = {"first.bias": digest_of(job.rpc, "first.bias")}
    outcomes: list[str] = []
    start = threading.Barrier(6)

    def attempt(number: int) -> None:
        request = write("first.bias", float(number))
        request.options.CopyFrom(Options(expected=expected))
        start.wait()
        try:
            outcomes.append(job.rpc.WriteTensor([request]).operation.outcome)
        except Exception as error:
            outcomes.append(Refused(error).reason)

    threads = [threading.Thread(target=attempt, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == sorted(["applied", *["STALE_DIGEST"] * 5])


@kinds
def test_the_viewer_token(change: Callable[[Rpc, Any], Any]) -> None:
    model = make_model()
    before = bits(model)
    with modscope_server.attach(model, writable=True) as scope, Rpc(scope.address, scope.viewer_token) as rpc:
        refusal = refused(lambda: change(rpc, Options()))
        assert (refusal.code, refusal.reason) == ("PERMISSION_DENIED", "VIEWER_TOKEN")
        assert refusal.hint
    assert bits(model) == before


@kinds
def test_a_server_that_is_read_only(change: Callable[[Rpc, Any], Any]) -> None:
    model = make_model()
    before = bits(model)
    with serving(model, writable=False) as rpc:
        refusal = refused(lambda: change(rpc, Options()))
        assert (refusal.code, refusal.reason) == ("PERMISSION_DENIED", "READ_ONLY_SERVER")
        assert "writable=True" in refusal.hint
    assert bits(model) == before


def test_undoing_needs_the_same_rights(job: Job) -> None:
    with modscope_server.attach(nn.Linear(1, 1)) as scope:
        with Rpc(scope.address, scope.viewer_token) as rpc:
            assert refused(lambda: rpc.Undo(id="op-1")).reason == "VIEWER_TOKEN"
            assert not rpc.ListOperations().operations
            assert refused(lambda: rpc.GetOperation(id="op-1")).reason == "UNKNOWN_OPERATION"
        with Rpc(scope.address, scope.token) as rpc:
            assert refused(lambda: rpc.Undo(id="op-1")).reason == "READ_ONLY_SERVER"


@kinds
def test_no_safe_point_in_time_and_never_later(change: Callable[[Rpc, Any], Any]) -> None:
    """The loop stands inside a forward; what was withdrawn does not run when it goes on."""
    model = make_model()
    model.last.weight.requires_grad = False
    optimizer = OPTIMIZERS["sgd"]([t for name, t in model.named_parameters() if name != "last.bias"])
    inside, go_on = threading.Event(), threading.Event()

    class Waits(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            inside.set()
            while not go_on.is_set():
                x = x + 0
            return x

    with serving(model, optimizer) as rpc:
        model.register_forward_pre_hook(lambda module, args: (Waits()(*args),))
        go_on.set()
        stepper(model, optimizer)()
        go_on.clear()
        inside.clear()
        loop = threading.Thread(target=stepper(model, optimizer))
        before = bits(model), optimizer_bits(model, optimizer)
        loop.start()
        inside.wait()
        hasty: Any = _Hasty(rpc)
        refusal = refused(lambda: change(hasty, Options()))
        assert (refusal.code, refusal.reason) == ("DEADLINE_EXCEEDED", "NO_SAFE_POINT")
        assert "forward" in refusal.message
        assert "--timeout" in refusal.hint
        assert (bits(model), optimizer_bits(model, optimizer)) == before
        go_on.set()
        loop.join()
        assert not rpc.ListOperations().operations


class _Hasty:
    """Calls with a deadline that is soon over."""

    def __init__(self, rpc: Rpc) -> None:
        self._rpc = rpc

    def __getattr__(self, name: str) -> Callable[..., Any]:
        call = getattr(self._rpc, name)
        return lambda *args, **fields: call(*args, timeout=1.0, **fields)


def undo_refusals() -> dict[str, tuple[Callable[[Rpc], str], str, str, str, str]]:
    """Case -> what makes the id to undo, then code, reason, message and hint."""

    def undone(rpc: Rpc) -> str:
        rpc.Undo(id=rpc.Freeze(glob="first.bias").operation.id)
        return "op-1"

    def overtaken(rpc: Rpc) -> str:
        rpc.WriteTensor([write("first.bias", 1.0)])
        rpc.Reinitialize(glob="first")
        return "op-1"

    return {
        "unknown": (
            lambda rpc: "op-9", "NOT_FOUND", "UNKNOWN_OPERATION",
            "there is no operation 'op-9' on 'model'", "list them: `modscope ops`",
        ),
        "no id": (
            lambda rpc: "", "NOT_FOUND", "UNKNOWN_OPERATION",
            "there is no operation '' on 'model'", "list them: `modscope ops`",
        ),
        "undone": (
            undone, "FAILED_PRECONDITION", "NOT_UNDOABLE",
            "op-1 (freeze) cannot be undone: op-2 has undone it already",
            "to have it back: modscope undo op-2",
        ),
        "overtaken": (
            overtaken, "FAILED_PRECONDITION", "NOT_UNDOABLE",
            "op-1 (write) cannot be undone: op-2 (reinitialize) has changed the same since",
            "undo that first: modscope undo op-2",
        ),
    }  # fmt: skip


@pytest.mark.parametrize("case", undo_refusals().values(), ids=undo_refusals())
def test_an_undo_that_cannot_be(job: Job, case: tuple[Callable[[Rpc], str], str, str, str, str]) -> None:
    prepare, code, reason, message, hint = case
    id = prepare(job.rpc)
    for options in (Options(), Options(dry_run=True)):
        refusal = job.refused(lambda options=options: job.rpc.Undo(id=id, options=options))  # type: ignore[misc]
        assert (refusal.code, refusal.reason, refusal.message, refusal.hint) == (code, reason, message, hint)


def test_an_undo_with_a_stale_digest(job: Job) -> None:
    id = job.rpc.WriteTensor([write("first.bias", 1.0)]).operation.id
    options = Options(expected={"first.bias": UNTRUE})
    assert job.refused(lambda: job.rpc.Undo(id=id, options=options)).reason == "STALE_DIGEST"
    options = Options(expected={"first.bias": digest_of(job.rpc, "first.bias")})
    assert job.rpc.Undo(id=id, options=options).operation.outcome == "applied"


def list_refusals() -> dict[str, tuple[Callable[[Rpc], Any], str, str]]:
    change = operation_service_pb2.Change(freeze=parameter_service_pb2.FreezeRequest(glob="first"))
    options = operation_pb2.ChangeOptions()
    nowhere = parameter_service_pb2.WriteTensorRequest(model="x", path="w", fill=tensor_pb2.Scalar(real=1))
    return {
        "page_size": (lambda rpc: rpc.ListOperations(page_size=-1), "INVALID_ARGUMENT", "BAD_REQUEST"),
        "page_token": (lambda rpc: rpc.ListOperations(page_token="x"), "INVALID_ARGUMENT", "BAD_REQUEST"),
        "model of a list": (lambda rpc: rpc.ListOperations(model="x"), "NOT_FOUND", "UNKNOWN_MODEL"),
        "model of an operation": (lambda rpc: rpc.GetOperation(model="x"), "NOT_FOUND", "UNKNOWN_MODEL"),
        "operation": (lambda rpc: rpc.GetOperation(id="op-1"), "NOT_FOUND", "UNKNOWN_OPERATION"),
        "model of an undo": (lambda rpc: rpc.Undo(model="x", id="op-1"), "NOT_FOUND", "UNKNOWN_MODEL"),
        "model of a write": (lambda rpc: rpc.WriteTensor([nowhere]), "NOT_FOUND", "UNKNOWN_MODEL"),
        "no message": (lambda rpc: rpc.Transact([]), "INVALID_ARGUMENT", "BAD_REQUEST"),
        "model of a transaction": (
            lambda rpc: rpc.Transact([operation_service_pb2.TransactRequest(model="x")]),
            "NOT_FOUND",
            "UNKNOWN_MODEL",
        ),
        "digest in a transaction": (
            lambda rpc: rpc.Transact(transaction(change, options=Options(expected={"first.bias": UNTRUE}))),
            "FAILED_PRECONDITION",
            "STALE_DIGEST",
        ),
        "nothing matches": (
            lambda rpc: rpc.Freeze(glob="x", options=options), "NOT_FOUND", "NO_MATCH"
        ),
    }  # fmt: skip


@pytest.mark.parametrize(("call", "code", "reason"), list_refusals().values(), ids=list_refusals())
def test_other_refusals(job: Job, call: Callable[[Rpc], Any], code: str, reason: str) -> None:
    refusal = job.refused(lambda: call(job.rpc))
    assert (refusal.code, refusal.reason) == (code, reason)
    assert refusal.hint
