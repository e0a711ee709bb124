"""Clients that are none of ours: buf curl through reflection, and Node with only the .proto files."""

from __future__ import annotations

import base64
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from google.rpc import error_details_pb2

from tests.end_to_end.bad_calls import Small
from tests.end_to_end.serving import TIMEOUT, Served, fingerprint, raw, running_loop, served

HERE = Path(__file__).parent
PROTO = HERE.parents[1] / "proto"
NODE_PACKAGES = ("@grpc/grpc-js@1.14.4", "@grpc/proto-loader@0.8.0")
NOT_FOUND = 5
UNAUTHENTICATED = 16


@pytest.fixture(params=["tcp", "unix"])
def live(request: pytest.FixtureRequest) -> Iterator[Served]:
    module = Small()
    address = "127.0.0.1:0" if request.param == "tcp" else None
    with served(module, torch.optim.SGD(module.parameters(), lr=0.1), address=address) as live:
        yield live


class Curl:
    """buf curl against one server."""

    def __init__(self, buf: str, live: Served) -> None:
        address = str(live.scope.address)
        self.buf = buf
        self.token = str(live.scope.token)
        self.where = ["--unix-socket", address.removeprefix("unix:")] if address.startswith("unix:") else []
        self.host = "http://localhost" if self.where else f"http://{address}"

    def run(
        self, method: str, *messages: dict[str, Any], token: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Calls a method with the schema that the server itself tells."""
        header = f"authorization: Bearer {token or self.token}"
        return subprocess.run(
            [
                *(self.buf, "curl", "--protocol", "grpc", "--http2-prior-knowledge", *self.where),
                *("--header", header, "--reflect-header", f"authorization: Bearer {self.token}"),
                *("--data", "@-", f"{self.host}/{method}"),
            ],
            input="\n".join(json.dumps(message) for message in messages) or "{}",
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )

    def call(self, method: str, *messages: dict[str, Any]) -> list[dict[str, Any]]:
        """The messages that a method gives."""
        done = self.run(method, *messages)
        assert done.returncode == 0, done.stderr
        decoder, text, replies = json.JSONDecoder(), done.stdout.strip(), []
        while text:
            reply, end = decoder.raw_decode(text)
            replies.append(reply)
            text = text[end:].lstrip()
        return replies

    def fail(
        self, method: str, *messages: dict[str, Any], **options: str
    ) -> tuple[int, error_details_pb2.ErrorInfo]:
        """The status number with which a method fails, and the ErrorInfo that comes with it."""
        done = self.run(method, *messages, **options)
        assert done.stdout == ""
        info = error_details_pb2.ErrorInfo()
        (value,) = [
            detail["value"]
            for detail in json.loads(done.stderr)["details"]
            if detail["type"] == info.DESCRIPTOR.full_name
        ]
        info.ParseFromString(base64.b64decode(value + "=" * (-len(value) % 4)))
        return done.returncode >> 3, info


@pytest.fixture
def curl(live: Served) -> Curl:
    beside = Path(sys.executable).with_name("buf")
    buf = str(beside) if beside.exists() else shutil.which("buf")
    if buf is None:
        pytest.skip("buf is not installed")
    return Curl(buf, live)


def test_buf_curl_lists_through_reflection(curl: Curl, live: Served) -> None:
    (models,) = curl.call("modscope.v1.ModelService/ListModels")
    assert [model["name"] for model in models["models"]] == ["model"]
    assert models["models"][0]["writable"] is True

    batches = curl.call("modscope.v1.ModelService/ListModules", {"type": "Linear"})
    modules = [module for batch in batches for module in batch.get("modules", [])]
    assert [module["path"] for module in modules] == ["first", "last"]

    batches = curl.call("modscope.v1.ParameterService/ListParameters", {"stats": True})
    listed = {item["path"]: item for batch in batches for item in batch.get("parameters", [])}
    assert list(listed) == [path for path, _ in live.module.named_parameters()]
    for path, tensor in live.module.named_parameters():
        assert [int(size) for size in listed[path]["shape"]] == list(tensor.shape)
        assert listed[path]["stats"].get("norm", 0.0) == pytest.approx(tensor.norm().item(), rel=1e-5)

    assert curl.call("grpc.health.v1.Health/Check") == [{"status": "SERVING"}]


def test_buf_curl_reads_and_writes(curl: Curl, live: Served) -> None:
    (reply,) = curl.call("modscope.v1.ParameterService/ReadTensor", {"path": "first.weight"})
    assert base64.b64decode(reply["data"]) == raw(live.module.get_parameter("first.weight"))
    assert reply["spec"]["dtypeName"] == "float32"

    values = struct.pack("<2f", 1.5, -2.5)
    (reply,) = curl.call(
        "modscope.v1.ParameterService/WriteTensor",
        {
            "path": "last.bias",
            "spec": {"dtype": "DTYPE_FLOAT32", "dtypeName": "float32", "shape": [2], "byteSize": 8},
        },
        {"data": base64.b64encode(values).decode()},
    )
    assert reply["operation"]["paths"] == ["last.bias"]
    assert raw(live.module.get_parameter("last.bias")) == values


def test_buf_curl_is_told_what_is_wrong(curl: Curl, live: Served) -> None:
    before = fingerprint(live.module)
    code, info = curl.fail("modscope.v1.ParameterService/ReadTensor", {"path": "first.weigth"})
    assert (code, info.domain, info.reason) == (NOT_FOUND, "modscope", "UNKNOWN_PATH")
    assert "first.weight" in info.metadata["hint"]
    code, info = curl.fail("modscope.v1.ModelService/ListModels", token="wrong")
    assert (code, info.reason) == (UNAUTHENTICATED, "BAD_TOKEN")
    assert fingerprint(live.module) == before


@pytest.fixture(scope="session")
def node_modules() -> Path:
    """grpc for Node, installed once into a folder below the system's temporary one."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("node or npm is not installed")
    versions = "-".join(package.rpartition("@")[2] for package in NODE_PACKAGES)
    folder = Path(tempfile.gettempdir()) / f"modscope-node-{os.getuid()}-{versions}"
    if not folder.exists():
        fresh = Path(tempfile.mkdtemp(prefix="modscope-node-"))
        try:
            subprocess.run(
                [
                    npm,
                    "install",
                    "--prefix",
                    str(fresh),
                    "--ignore-scripts",
                    "--no-audit",
                    "--no-fund",
                    *NODE_PACKAGES,
                ],
                check=True,
                capture_output=True,
                timeout=60,
            )
            fresh.rename(folder)
        except (subprocess.SubprocessError, OSError) as error:
            shutil.rmtree(fresh, ignore_errors=True)
            if not folder.exists():
                pytest.skip(f"npm could not install {' '.join(NODE_PACKAGES)}: {error}")
    if folder.stat().st_uid != os.getuid():
        pytest.skip(f"{folder} belongs to another user")
    return folder / "node_modules"


def test_node_with_only_the_proto_files(live: Served, node_modules: Path) -> None:
    address = str(live.scope.address)
    weight = raw(live.module.get_parameter("first.weight"))
    state = b"".join(raw(tensor) for tensor in live.module.state_dict().values())
    live.module.eval()
    x = torch.zeros(2, 4)
    output = raw(live.module(x))

    def iteration() -> None:
        with torch.no_grad():
            live.module(x)

    with running_loop(iteration):
        done = subprocess.run(
            [
                "node",
                str(HERE / "foreign_client.js"),
                address,
                str(live.scope.token),
                str(PROTO),
                str(node_modules),
            ],
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)

    assert seen["models"] == ["model"]
    assert seen["modules"] == [[path, type(part).__name__] for path, part in live.module.named_modules()]
    assert [path for path, _, _ in seen["parameters"]] == [path for path, _ in live.module.named_parameters()]
    assert bytes.fromhex(seen["weight"]) == weight
    assert seen["keys"] == list(live.module.state_dict())
    assert bytes.fromhex(seen["stateDict"]) == state
    assert bytes.fromhex(seen["forward"]) == output
    assert seen["watch"]["events"][:3] == [[number, "first", "HOOK_KIND_FORWARD"] for number in range(3)]
    assert seen["watch"]["reason"]
    assert seen["written"] == ["last.bias"]
    assert live.module.get_parameter("last.bias").tolist() == [1.5, -2.5]
    assert seen["frozen"] == ["first.weight", "first.bias"]
    assert [path for path, tensor in live.module.named_parameters() if not tensor.requires_grad] == seen[
        "frozen"
    ]
    assert seen["unknownPath"]["status"] == "NOT_FOUND"
    assert "UNKNOWN_PATH" in seen["unknownPath"]["details"]
    assert "first.weigth" in seen["unknownPath"]["message"]
    assert seen["wrongToken"]["status"] == seen["noToken"]["status"] == "UNAUTHENTICATED"
    assert "BAD_TOKEN" in seen["wrongToken"]["details"]
