"""Many clients change a model in a running loop: the ledger alone explains every value that it has."""

from __future__ import annotations

import random
import threading
from typing import Any

import grpc
import torch

from modscope.v1 import operation_service_pb2, parameter_service_pb2
from tests.server.change_kinds import Options, transaction, write
from tests.server.rpc import Refused, Rpc, serving, training_loop
from tests.server.undo_support import make_model, stepper

PATHS = ("first.weight", "first.bias", "last.weight", "last.bias")
Change = operation_service_pb2.Change
Reinitialize = parameter_service_pb2.ReinitializeRequest


def change_at_random(rpc: Rpc, choose: random.Random) -> None:
    """One change of some kind; an undo may be refused, for somebody else was faster."""
    path, value = choose.choice(PATHS), choose.random()
    kind = choose.randrange(5)
    if kind == 0:
        rpc.WriteTensor([write(path, value)])
    elif kind == 1:
        rpc.Reinitialize(glob=path.partition(".")[0])
    elif kind == 2:
        changes = [Change(write=write(path, value)), Change(reinitialize=Reinitialize(glob="last"))]
        rpc.Transact(transaction(*changes))
    elif kind == 3:
        rpc.Freeze(glob=path, force=True)
    else:
        listed = [one.id for one in rpc.ListOperations().operations if not one.not_undoable]
        try:
            rpc.Undo(id=choose.choice(listed or ["op-1"]), options=Options(request_id=f"{value}"))
        except grpc.RpcError as error:
            if Refused(error).reason not in ("NOT_UNDOABLE", "UNKNOWN_OPERATION"):
                raise


def test_each_change_begins_where_the_one_before_ended() -> None:
    model = make_model()
    # The loop steps and moves nothing, so that the ledger alone does.
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with serving(model, optimizer) as rpc:
        present = {path: rpc.GetTensor(path=path).digest for path in PATHS}
        errors: list[BaseException] = []

        def client(number: int) -> None:
            choose = random.Random(number)
            try:
                for _ in range(40):
                    change_at_random(rpc, choose)
            except BaseException as error:
                errors.append(error)

        with training_loop(stepper(model, optimizer)):
            threads = [threading.Thread(target=client, args=(number,)) for number in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert not errors
        operations: list[Any] = list(rpc.ListOperations().operations)
        last = {path: rpc.GetTensor(path=path).digest for path in PATHS}
    assert len(operations) > 100
    assert [one.step for one in operations] == sorted(one.step for one in operations)
    assert sum(one.kind == "undo" for one in operations) > 3
    for one in operations:
        for path, digest in one.before.items():
            assert present[path] == digest, (one.id, path)
        present.update(one.after)
    assert present == last


def test_undoing_all_of_it_leads_back() -> None:
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with serving(model, optimizer) as rpc:
        first = {path: rpc.GetTensor(path=path).digest for path in PATHS}
        choose = random.Random(7)
        for _ in range(60):
            change_at_random(rpc, choose)
        for one in reversed(rpc.ListOperations().operations):
            now = rpc.GetOperation(id=one.id).operation
            if not now.undone and now.kind != "undo":
                assert not now.not_undoable
                rpc.Undo(id=now.id)
        assert {path: rpc.GetTensor(path=path).digest for path in PATHS} == first
    assert all(tensor.requires_grad for tensor in model.parameters())
