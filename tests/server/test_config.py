"""ServerConfig, Limits and TLS say what is wrong with a value and what to give instead."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from modscope_server.address import TcpAddress, UnixAddress, parse_address
from modscope_server.config import TLS, Limits, ServerConfig
from modscope_server.errors import ConfigurationError


def test_options_are_frozen_and_keyword_only() -> None:
    config: Any = ServerConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.writable = True
    positional: Any = ServerConfig
    with pytest.raises(TypeError):
        positional("localhost:0")


def test_the_defaults_are_the_safe_ones() -> None:
    config = ServerConfig()
    assert (config.address, config.writable, config.tls, config.token) == (None, False, None, None)
    assert config.limits.read_share == 0.05


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("streams", 0),
        ("streams", 1.5),
        ("streams", True),
        ("staging_bytes", -1),
        ("staging_bytes", "1"),
        ("read_share", 0.0),
        ("read_share", 1.01),
        ("queue", 0),
        ("queue_bytes", 0),
        ("heartbeat", 0),
        ("heartbeat", None),
    ],
)
def test_a_limit_that_cannot_be_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ConfigurationError) as raised:
        Limits(**{name: value})
    assert raised.value.field == f"limits.{name}"
    assert repr(value) in raised.value.message
    assert raised.value.hint


@pytest.mark.parametrize("token", ["", "two words", "tab\t", "naïve", 7])
def test_a_token_that_cannot_travel_as_metadata_is_refused(token: Any) -> None:
    with pytest.raises(ConfigurationError) as raised:
        ServerConfig(token=token)
    assert raised.value.field == "token"
    assert str(token) not in raised.value.message or token == ""


def test_files_of_tls_must_exist(tmp_path: Path) -> None:
    cert = tmp_path / "cert.pem"
    cert.write_text("")
    with pytest.raises(ConfigurationError, match=r"tls\.key: there is no file"):
        TLS(cert=cert, key=tmp_path / "key.pem")


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("unix:/a/b.sock", UnixAddress("/a/b.sock")),
        ("unix:///a/b.sock", UnixAddress("/a/b.sock")),
        ("localhost:0", TcpAddress("localhost", 0)),
        ("127.0.0.1:8080", TcpAddress("127.0.0.1", 8080)),
        ("[::1]:65535", TcpAddress("::1", 65535)),
        ("gpu-7.example:50051", TcpAddress("gpu-7.example", 50051)),
    ],
)
def test_addresses_that_people_type(text: str, parsed: UnixAddress | TcpAddress) -> None:
    assert parse_address(text) == parsed
    assert parse_address(str(parsed)) == parsed


@pytest.mark.parametrize(
    "text",
    [
        "",
        "localhost",
        ":80",
        "localhost:",
        "localhost:http",
        "localhost:65536",
        "localhost:" + "9" * 5000,
        "::1:80",
        "unix:",
        "unix:a.sock",
        "unix:/" + "a" * 107,
        "http://localhost:80",
        "unix-abstract:a",
        "localhost:-1",
        "localhost:٣",
    ],
)
def test_addresses_that_cannot_be_listened_at(text: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        parse_address(text)
    assert raised.value.field == "address"
    assert raised.value.hint


def test_a_socket_path_may_have_107_bytes() -> None:
    path = "/" + "a" * 106
    assert parse_address(f"unix:{path}") == UnixAddress(path)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("example.org", False),
        ("localhost.example.org", False),
    ],
)
def test_what_counts_as_loopback(host: str, loopback: bool) -> None:
    assert TcpAddress(host, 1).loopback is loopback
