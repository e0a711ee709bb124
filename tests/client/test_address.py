"""Addresses: what is one, what is local, and what is refused."""

from __future__ import annotations

import pytest

from modscope_client.address import Address, parse_address
from modscope_client.errors import InvalidArgument


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("unix:/run/a b/s", Address("unix:/run/a b/s", True)),
        ("unix:///run/s", Address("unix:/run/s", True)),
        ("localhost:5", Address("localhost:5", True)),
        ("127.0.0.1:50051", Address("127.0.0.1:50051", True)),
        ("127.9.9.9:1", Address("127.9.9.9:1", True)),
        ("[::1]:80", Address("[::1]:80", True)),
        ("[fe80::1]:80", Address("[fe80::1]:80", False)),
        ("10.0.0.7:65535", Address("10.0.0.7:65535", False)),
        ("0.0.0.0:1", Address("0.0.0.0:1", False)),
        ("gpu-7.example:443", Address("gpu-7.example:443", False)),
        ("localhost.example:443", Address("localhost.example:443", False)),
    ],
)
def test_what_is_an_address(text: str, expected: Address) -> None:
    assert parse_address(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "host",
        ":80",
        "host:",
        "host:0",
        "host:65536",
        "host:-1",
        "host:http",
        "host:¹",
        "::1:80",
        "unix:",
        "unix:relative",
        "unix://host/path",
        "dns:///host:80",
        "http://host:80",
    ],
)
def test_what_is_none(text: str) -> None:
    with pytest.raises(InvalidArgument, match="address") as refusal:
        parse_address(text)
    assert refusal.value.details == {"field": "address"}
    assert "unix:/path" in refusal.value.hint
