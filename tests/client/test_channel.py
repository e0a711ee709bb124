"""Channels: what an endpoint is made of, what every call carries, what is sent again and what is not."""

from __future__ import annotations

import importlib
import json
import os
import threading
from pathlib import Path
from typing import Any

import grpc
import pytest

from modscope.v1 import model_service_pb2, parameter_service_pb2
from modscope_client import channel, rpcs
from modscope_client.calls import Calls
from modscope_client.channel import EVENTS_AHEAD, Endpoint, check_timeout
from modscope_client.errors import FailedPrecondition, InvalidArgument, Unavailable
from tests.client.fake_server import serving


def find(address: str, token: str | None = "t", tls: Any = None, *, insecure: bool = False) -> Endpoint:
    return Endpoint.find(address, token, tls, insecure=insecure)


@pytest.mark.parametrize("address", ["gpu-7:443", "10.0.0.7:443", "0.0.0.0:443"])
def test_a_token_is_not_sent_unencrypted_to_another_host(address: str) -> None:
    for tls in (None, False):
        with pytest.raises(InvalidArgument, match="unencrypted") as refusal:
            find(address, tls=tls)
        assert "tls=True" in refusal.value.hint and "insecure=True" in refusal.value.hint
    assert not find(address, insecure=True).secure
    assert find(address, tls=True).secure
    assert not find(address, token=None).secure


@pytest.mark.parametrize("address", ["unix:/s", "localhost:443", "127.0.0.1:443", "[::1]:443"])
def test_on_this_host_it_is(address: str) -> None:
    endpoint = find(address)
    assert (endpoint.address, endpoint.token, endpoint.secure) == (address, "t", False)


def test_tls_is_the_systems_a_file_or_bytes(tmp_path: Path) -> None:
    pem = tmp_path / "ca.pem"
    pem.write_bytes(b"-----BEGIN CERTIFICATE-----")
    assert find("host:1", tls=True).root_certificates is None
    for tls in (pem, str(pem), pem.read_bytes()):
        assert find("host:1", tls=tls).root_certificates == b"-----BEGIN CERTIFICATE-----"
    with pytest.raises(InvalidArgument, match="nowhere"):
        find("host:1", tls="/nowhere.pem")


@pytest.mark.parametrize("token", ["a b", "a\nb", "ü", "\x00"])
def test_a_token_that_metadata_cannot_carry_is_refused(token: str) -> None:
    with pytest.raises(InvalidArgument, match="token"):
        find("unix:/s", token=token)


def test_the_token_is_not_shown() -> None:
    assert "secret" not in repr(find("unix:/s", token="secret"))


@pytest.mark.parametrize("timeout", [0, -1, float("inf"), float("nan"), "10", None, True])
def test_a_timeout_is_a_number_of_seconds(timeout: Any) -> None:
    with pytest.raises(InvalidArgument, match="timeout"):
        check_timeout(timeout)
    assert check_timeout(3) == 3.0


def test_metadata_names_the_calling_thread() -> None:
    endpoint = find("unix:/s")
    seen: list[dict[str, str]] = [dict(endpoint.metadata())]
    other = threading.Thread(target=lambda: seen.append(dict(endpoint.metadata())))
    other.start()
    other.join()
    for metadata, thread in zip(seen, (threading.main_thread(), other), strict=True):
        assert metadata["authorization"] == "Bearer t"
        boot, pid, native = metadata["modscope-caller"].split("/")
        assert (int(pid), int(native)) == (os.getpid(), thread.native_id)
        assert boot and boot.isascii()
    assert "authorization" not in dict(find("unix:/s", token=None).metadata())


def test_the_boot_is_the_one_that_the_server_sees() -> None:
    from modscope_server.discovery import boot_id

    boot, _, _ = dict(find("unix:/s").metadata())["modscope-caller"].partition("/")
    assert boot == boot_id()


def options_of(endpoint: Endpoint, *, ahead: int | None = None) -> dict[str, Any]:
    return dict(endpoint._options(ahead))


def test_a_watch_holds_little_on_the_way() -> None:
    plain, watch = (options_of(find("unix:/s"), ahead=ahead) for ahead in (None, EVENTS_AHEAD))
    assert watch["grpc.http2.bdp_probe"] == 0 and watch["grpc.http2.lookahead_bytes"] == 16384
    assert "grpc.http2.bdp_probe" not in plain and "grpc.http2.lookahead_bytes" not in plain
    for options in (plain, watch):
        assert options["grpc.max_receive_message_length"] == 8 << 20
        assert options["grpc.http2.ping_timeout_ms"] == options["grpc.keepalive_timeout_ms"]


def test_proxies_of_the_environment_serve_other_hosts_alone() -> None:
    assert options_of(find("localhost:1"))["grpc.enable_http_proxy"] == 0
    assert "grpc.enable_http_proxy" not in options_of(find("host:1", token=None))


def test_the_service_config_names_reads_alone() -> None:
    (config,) = json.loads(options_of(find("unix:/s"))["grpc.service_config"])["methodConfig"]
    names = {name["method"] for name in config["name"]}
    assert names == {name for _, name in rpcs.RETRIED} >= {rpc.name for rpc in rpcs.READS}
    assert not names & {"WriteTensor", "Freeze", "Unfreeze", "Reinitialize", "Upload", "Forward", "Watch"}


def test_what_is_sent_again_is_there_and_changes_nothing() -> None:
    for service, name in rpcs.RETRIED:
        home = importlib.import_module(f"modscope.v1.{_snake(service.rpartition('.')[2])}_pb2")
        assert name in home.DESCRIPTOR.services_by_name[service.rpartition(".")[2]].methods_by_name
        assert name.startswith(("Get", "List", "Read", "Download", "Wait"))


def _snake(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("_")


class Flaky:
    """A behaviour that refuses so many times before it answers."""

    def __init__(self, refusals: int, answer: Any) -> None:
        self.calls = 0
        self._refusals, self._answer = refusals, answer

    def __call__(self, request: Any, context: grpc.ServicerContext) -> Any:
        self.calls += 1
        if self.calls <= self._refusals:
            context.abort(grpc.StatusCode.UNAVAILABLE, "not now")
        return self._answer


def test_a_read_is_sent_again() -> None:
    flaky = Flaky(2, model_service_pb2.GetModelResponse())
    with serving({rpcs.GET_MODEL: flaky}) as endpoint:
        calls = Calls(endpoint, 10)
        assert calls.unary(rpcs.GET_MODEL, model_service_pb2.GetModelRequest()) == flaky._answer
        calls.close()
    assert flaky.calls == 3


def test_a_change_is_not() -> None:
    flaky = Flaky(1, parameter_service_pb2.FreezeResponse())
    with serving({rpcs.FREEZE: flaky}) as endpoint:
        calls = Calls(endpoint, 10)
        with pytest.raises(Unavailable):
            calls.unary(rpcs.FREEZE, parameter_service_pb2.FreezeRequest())
        calls.close()
    assert flaky.calls == 1


def test_a_forked_process_is_told_that_it_cannot_share_the_connection() -> None:
    with serving({rpcs.GET_MODEL: Flaky(0, model_service_pb2.GetModelResponse())}) as endpoint:
        calls = Calls(endpoint, 10)
        request = model_service_pb2.GetModelRequest()
        calls.unary(rpcs.GET_MODEL, request)
        pid = os.fork()
        if pid == 0:
            told = 0
            for attempt in (
                lambda: calls.unary(rpcs.GET_MODEL, request),
                lambda: calls.listing(rpcs.LIST_MODULES, model_service_pb2.ListModulesRequest(), print),
                lambda: Calls(endpoint, 10),
            ):
                try:
                    attempt()
                except FailedPrecondition as error:
                    told += error.reason == "FORKED"
                except BaseException:
                    pass
            calls.close()
            os._exit(told)
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 3
        calls.unary(rpcs.GET_MODEL, request)
        calls.close()


def test_each_process_names_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    before = channel._process()
    monkeypatch.setattr(os, "getpid", lambda: 4242)
    assert channel._process().split("/")[1] == "4242" != before.split("/")[1]
