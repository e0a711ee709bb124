"""Every rpc: who may call it, what a stranger is told, malformed bytes, health, reflection, limits."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
import torch
from google.protobuf import message_factory
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from torch import nn

import modscope_server
from tests.server.rpc import METHODS, Refused, Rpc, admitted, refused, shape_of, until

CHANGES = {
    *("WriteTensor", "Freeze", "Unfreeze", "Reinitialize", "Upload"),
    *("Undo", "Transact", "SetOptimizer", "AddToOptimizer"),
    *("SaveSnapshot", "RestoreSnapshot", "DropSnapshot"),
    *("Intervene", "RemoveInterventions"),
    *("Pause", "Resume", "Step", "AddBreak", "ClearBreaks", "RenewLease", "ReleaseLease"),
}


@pytest.fixture(scope="module")
def scope() -> Iterator[modscope_server.Scope]:
    with modscope_server.attach(nn.Linear(2, 2), writable=True) as scope:
        yield scope


@pytest.fixture(scope="module")
def read_only() -> Iterator[modscope_server.Scope]:
    with modscope_server.attach(nn.Linear(2, 2)) as scope:
        yield scope


def outcome(scope: modscope_server.Scope, token: str | None, name: str) -> Refused | None:
    """What an empty request meets; None where it is served."""
    method = METHODS[name]
    requests = (
        {"requests": [message_factory.GetMessageClass(method.input_type)()]}
        if method.client_streaming
        else {}
    )
    with Rpc(scope.address, token) as rpc:
        try:
            result = getattr(rpc, name)(**requests)
            if method.server_streaming:
                next(result)
                result.cancel()
            return None
        except grpc.RpcError as error:
            return Refused(error)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("token", [None, "", "wrong"])
def test_a_stranger_is_told_to_bring_a_token(
    scope: modscope_server.Scope, name: str, token: str | None
) -> None:
    refusal = outcome(scope, token, name)
    assert refusal is not None
    assert (refusal.code, refusal.reason, refusal.domain) == ("UNAUTHENTICATED", "BAD_TOKEN", "modscope")
    assert "--token-file" in refusal.hint


@pytest.mark.parametrize("name", METHODS)
def test_a_viewer_reads_and_changes_nothing(scope: modscope_server.Scope, name: str) -> None:
    refusal = outcome(scope, scope.viewer_token, name)
    if name in CHANGES:
        assert refusal is not None
        assert (refusal.code, refusal.reason) == ("PERMISSION_DENIED", "VIEWER_TOKEN")
    else:
        assert refusal is None or refusal.code in ("NOT_FOUND", "INVALID_ARGUMENT")


@pytest.mark.parametrize("name", METHODS)
def test_a_read_only_server_changes_nothing(read_only: modscope_server.Scope, name: str) -> None:
    refusal = outcome(read_only, read_only.token, name)
    if name in CHANGES:
        assert refusal is not None
        assert (refusal.code, refusal.reason) == ("PERMISSION_DENIED", "READ_ONLY_SERVER")
        assert "writable=True" in refusal.hint
    else:
        assert refusal is None or refusal.code in ("NOT_FOUND", "INVALID_ARGUMENT")


def test_a_viewer_is_refused_before_it_waits_for_a_step() -> None:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with modscope_server.attach(model, optimizer, writable=True) as scope:
        awaiting = model(torch.ones(1, 2)).sum()
        with Rpc(scope.address, scope.viewer_token) as rpc:
            refusal = refused(lambda: rpc.Freeze(glob="*", force=True, timeout=0.5))
        assert refusal.reason == "VIEWER_TOKEN"
        awaiting.backward()


@pytest.mark.parametrize("name", METHODS)
def test_a_model_that_is_not_there(scope: modscope_server.Scope, name: str) -> None:
    method = METHODS[name]
    if "model" not in method.input_type.fields_by_name:
        return
    with Rpc(scope.address, scope.token) as rpc:
        first = message_factory.GetMessageClass(method.input_type)(model="resnet")
        arguments: dict[str, Any] = {"requests": [first]} if method.client_streaming else {"model": "resnet"}
        refusal = refused(lambda: getattr(rpc, name)(**arguments))
    assert (refusal.code, refusal.reason, refusal.fields) == ("NOT_FOUND", "UNKNOWN_MODEL", ["model"])
    assert "'resnet'" in refusal.message
    assert "'model'" in refusal.hint


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("wire", [b"\x0a\x02\xff\xfe", b"\x0a\x7f", b"\x0b"], ids=["utf-8", "cut", "group"])
def test_bytes_that_are_no_message(scope: modscope_server.Scope, name: str, wire: bytes) -> None:
    method = METHODS[name]
    field = method.input_type.fields_by_number.get(1)
    if field is None or (field.type != field.TYPE_STRING and wire.startswith(b"\x0a\x02")):
        return
    with Rpc(scope.address, scope.token) as rpc:
        call = getattr(rpc.channel, shape_of(method))(f"/{method.containing_service.full_name}/{name}")
        request = iter([wire]) if method.client_streaming else wire
        refusal = refused(lambda: call(request, timeout=30, metadata=rpc.metadata))
    assert (refusal.code, refusal.reason) == ("INVALID_ARGUMENT", "BAD_REQUEST")
    assert method.input_type.full_name in refusal.message


def test_health_needs_no_token(scope: modscope_server.Scope) -> None:
    with Rpc(scope.address, None) as rpc:
        stub: Any = health_pb2_grpc.HealthStub(rpc.channel)
        for service in ("", *{method.containing_service.full_name for method in METHODS.values()}):
            status = stub.Check(health_pb2.HealthCheckRequest(service=service)).status
            assert status == health_pb2.HealthCheckResponse.SERVING


def test_reflection_needs_no_token_and_knows_every_service(scope: modscope_server.Scope) -> None:
    with Rpc(scope.address, None) as rpc:
        stub = reflection_pb2_grpc.ServerReflectionStub(rpc.channel)
        asked = [
            reflection_pb2.ServerReflectionRequest(list_services=""),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol="modscope.v1.HookService"),
        ]
        listed, file = stub.ServerReflectionInfo(iter(asked))
    names = {service.name for service in listed.list_services_response.service}
    assert names >= {method.containing_service.full_name for method in METHODS.values()}
    assert {"grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"} <= names
    assert any(
        b"modscope/v1/hook_service.proto" in data
        for data in file.file_descriptor_response.file_descriptor_proto
    )


def test_an_rpc_that_is_not_there(scope: modscope_server.Scope) -> None:
    with Rpc(scope.address, scope.token) as rpc:
        call: Any = rpc.channel.unary_unary("/modscope.v1.ModelService/Destroy")
        with pytest.raises(grpc.RpcError) as raised:
            call(b"", metadata=rpc.metadata)
    assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_streams_are_bounded_and_leave_workers_for_other_calls() -> None:
    limits = modscope_server.Limits(streams=3)
    with (
        modscope_server.attach(nn.Linear(2, 2), limits=limits) as scope,
        Rpc(scope.address, scope.token) as rpc,
    ):
        streams = [rpc.Watch() for _ in range(3)]
        for stream in streams:
            assert next(stream).HasField("created")
        refusal = refused(lambda: rpc.ListModules())
        assert (refusal.code, refusal.reason) == ("RESOURCE_EXHAUSTED", "LIMIT")
        assert "limits.streams" in refusal.hint
        reflect = reflection_pb2_grpc.ServerReflectionStub(rpc.channel)
        with pytest.raises(grpc.RpcError) as raised:
            list(reflect.ServerReflectionInfo(iter([])))
        assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        # Unary calls have workers of their own, more at a time than streams could take.
        threads = [threading.Thread(target=rpc.GetModel) for _ in range(30)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
        assert rpc.GetModel().model.name == "model"
        streams[0].cancel()
        until(lambda: admitted(lambda: list(rpc.ListModules())))


def test_the_operator_is_named_in_what_it_did(scope: modscope_server.Scope) -> None:
    with Rpc(scope.address, scope.token) as rpc:
        first = rpc.Freeze(glob="bias").operation
        second = rpc.Unfreeze(glob="bias").operation
    assert first.who.startswith("operator unix:")
    assert first.id != second.id
    assert (first.kind, second.kind) == ("freeze", "unfreeze")
    assert (first.outcome, list(first.paths), first.model) == ("applied", ["bias"], "model")
    assert not first.before
    assert not first.undone


@pytest.mark.parametrize(
    "caller", ["", "boot", "boot/1", "boot/x/1", "boot/1/" + "9" * 5000, "///", "boot/1/2/3"]
)
def test_a_caller_that_names_no_thread_is_served_like_any_other(
    scope: modscope_server.Scope, caller: str
) -> None:
    with Rpc(scope.address, scope.token) as rpc:
        rpc.metadata.append(("modscope-caller", caller))
        assert rpc.ReadTensor(path="bias").spec.byte_size == 8
