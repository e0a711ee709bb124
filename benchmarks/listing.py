"""modules() of a model with 100,000 modules, beside building and serialising the same messages locally.

The peer has the finished values as plain tuples and makes of them ModuleInfo messages, in batches of
1,024 as ListModulesResponse, and their wire bytes. It walks no model, sends nothing, parses nothing
and makes no records, all of which are in ours. The server's part alone is told beside it: the same
call, its messages received as bytes and left unparsed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import grpc

from benchmarks.measure import Bar, Effort, Pairs, Row, measure, ratio
from benchmarks.processes import Child, workplace
from modscope.v1 import model_pb2, model_service_pb2
from modscope_client import ModuleInfo, connect

__all__ = ["run"]

_BATCH = 1024
_RPC = "/modscope.v1.ModelService/ListModules"


def run(quick: bool) -> list[Row]:
    """The whole call, and the server's part of it."""
    count, effort = (10_000, Effort(3, 10, 5.0)) if quick else (100_000, Effort(10, 40, 90.0))
    with workplace(), Child("benchmarks.models", "many", str(count)) as server:
        address, token = server.hello["address"], server.hello["token"]
        with connect(address, token=token, timeout=60.0) as client, grpc.insecure_channel(address) as channel:
            model = client.model()
            plain = [_plain(info) for info in model.modules()]
            assert len(plain) == count
            stream = channel.unary_stream(
                _RPC, model_service_pb2.ListModulesRequest.SerializeToString, lambda wire: wire
            )

            def whole() -> float:
                began = time.perf_counter()
                listed = model.modules()
                taken = time.perf_counter() - began
                assert len(listed) == count
                return taken

            def servers() -> float:
                began = time.perf_counter()
                metadata = (("authorization", f"Bearer {token}"),)
                received = [*stream(model_service_pb2.ListModulesRequest(), metadata=metadata)]
                taken = time.perf_counter() - began
                assert len(received) >= count // _BATCH
                return taken

            def peer() -> float:
                began = time.perf_counter()
                batches = _serialised(plain)
                taken = time.perf_counter() - began
                assert len(batches) >= count // _BATCH
                return taken

            rows = [
                _row(f"modules() of {count:,} modules", measure(whole, peer, effort), Bar(3.0)),
                _row("the server's part of it, sent and left unparsed", measure(servers, peer, effort), None),
            ]
    return rows


def _row(name: str, pairs: Pairs, bar: Bar | None) -> Row:
    ours, others = (statistics.median(side) * 1e3 for side in (pairs.ours, pairs.peers))
    return ratio(
        f"{name}, beside building and serialising its messages",
        pairs,
        bar=bar,
        detail=f"{ours:.0f} beside {others:.0f} ms",
    )


def _plain(info: ModuleInfo) -> tuple[Any, ...]:
    return (
        info.path,
        info.name,
        info.type,
        info.qualified_type,
        info.training,
        info.children,
        info.parameters,
        info.trainable_parameters,
        info.aliases,
        info.raw_path,
        info.wrappers,
    )


def _serialised(plain: Sequence[tuple[Any, ...]]) -> list[bytes]:
    return [
        model_service_pb2.ListModulesResponse(
            modules=[
                model_pb2.ModuleInfo(
                    path=path,
                    name=name,
                    type=kind,
                    qualified_type=qualified,
                    training=training,
                    children=children,
                    parameters=parameters,
                    trainable_parameters=trainable,
                    aliases=aliases,
                    raw_path=raw,
                    wrappers=wrappers,
                )
                for (
                    path,
                    name,
                    kind,
                    qualified,
                    training,
                    children,
                    parameters,
                    trainable,
                    aliases,
                    raw,
                    wrappers,
                ) in plain[start : start + _BATCH]
            ]
        ).SerializeToString()
        for start in range(0, len(plain), _BATCH)
    ]
