"""The client against a real server and a real model, with PyTorch as the oracle."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import nn

import modscope_server
from modscope.tensor import TensorData, digest
from modscope_client import Client, connect
from modscope_client.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
)
from modscope_client.types import BufferInfo, Opaque, ParameterInfo
from tests.client.served_net import Net, net
from tests.end_to_end.serving import Served, bits, fingerprint, raw, running_loop, served


@pytest.fixture
def live() -> Iterator[Served]:
    torch.manual_seed(0)
    module = Net()
    with served(module, torch.optim.Adam(module.parameters())) as made:
        yield made


def train(module: nn.Module, optimizer: torch.optim.Optimizer, inputs: int = 8) -> None:
    optimizer.zero_grad()
    module(torch.randn(4, inputs)).square().mean().backward()
    optimizer.step()


def test_the_only_server_is_found_with_its_token() -> None:
    module = Net()
    with modscope_server.attach(module, writable=True) as scope, connect() as client:
        assert client.address == scope.address
        client.model().write("head.bias", fill=1)
        assert module.head.bias.tolist() == [1] * 4
        with connect(scope.address) as other:
            assert other.models() == client.models()


def test_the_environment_names_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        modscope_server.attach(Net(), address="localhost:0") as scope,
        modscope_server.attach(Net(), name="b"),
    ):
        with pytest.raises(FailedPrecondition, match="2 servers on this host"):
            connect()
        monkeypatch.setenv("MODSCOPE_ADDRESS", str(scope.address))
        monkeypatch.setenv("MODSCOPE_TOKEN", str(scope.viewer_token))
        with connect() as client:
            assert [model.name for model in client.models()] == ["model"]
        monkeypatch.setenv("MODSCOPE_TOKEN", "wrong")
        with connect() as client, pytest.raises(Unauthenticated) as refusal:
            client.models()
        assert refusal.value.reason == "BAD_TOKEN"


def test_models_by_name() -> None:
    generator, critic = Net(), nn.Linear(2, 2)
    with modscope_server.attach({"generator": generator, "critic": critic}) as scope:
        with connect(scope.address, token=scope.viewer_token) as client:
            assert [model.name for model in client.models()] == ["generator", "critic"]
            assert client.model("critic").info().parameters == 6
            for name in (None, "discriminator"):
                with pytest.raises(NotFound, match="generator") as refusal:
                    client.model(name)
                assert refusal.value.reason == "UNKNOWN_MODEL"


def test_what_a_handle_shows(live: Served) -> None:
    assert str(live.model) == repr(live.module)
    assert str(live.model.module("body")) == repr(net(live).body)
    assert repr(live.model) == f"<RemoteModel 'model' at {live.scope.address}>"
    assert "RemoteModule 'body' of <RemoteModel" in repr(live.model.module("body"))
    assert "RemoteParameter 'head.bias' of" in repr(live.model.parameter("head.bias"))


def test_repr_never_fails_and_str_tells_why(live: Served) -> None:
    live.client.close()
    assert "closed" in repr(live.client)
    for handle in (live.model, live.model.module("nowhere"), live.model.parameter("nowhere")):
        assert repr(handle).startswith("<Remote")
    with pytest.raises(Unavailable):
        str(live.model)


def test_model_info(live: Served) -> None:
    info = live.model.info()
    assert (info.name, info.type, info.training, info.step) == ("model", "Net", True, 0)
    assert info.modules == len(list(live.module.modules()))
    assert info.parameters == info.trainable_parameters == sum(p.numel() for p in live.module.parameters())
    assert info.optimizers == 1 and info.writable


def test_structure(live: Served) -> None:
    assert [child.path for child in live.model.children()] == [n for n, _ in live.module.named_children()]
    assert [child.path for child in live.model.children("body")] == ["body.0", "body.1", "body.2"]
    assert [module.path for module in live.model.modules("body.*", type=nn.Linear)] == ["body.0"]
    assert [module.path for module in live.model.modules(root="body", depth=0)] == ["body"]
    head = next(module for module in live.model.modules() if module.path == "head")
    assert head.aliases == ("twin",) and head.repr is None
    assert [p.path for p in live.model.parameters("head")] == ["head.weight", "head.bias"]
    assert [b.path for b in live.model.buffers("*brief")] == ["brief"]
    assert [p.path for p in live.model.parameters(requires_grad=False)] == []


def test_statistics(live: Served) -> None:
    info = next(iter(live.model.parameters("head.weight", stats=True)))
    given = net(live).head.weight.detach().double()
    assert info.stats is not None
    assert info.stats.count == given.numel()
    assert info.stats.mean == pytest.approx(given.mean().item(), rel=1e-5)
    assert info.stats.std == pytest.approx(given.std(correction=0).item(), rel=1e-5)
    assert live.model.parameters("head.weight")[0].stats is None


def test_one_tensor_whole(live: Served) -> None:
    detail = live.model.tensor("hidden")
    assert (
        isinstance(detail.info, BufferInfo) and not detail.info.persistent and detail.info.stats is not None
    )
    expected = digest(TensorData("int64", (3,), raw(net(live).hidden)))
    assert detail.digest == expected == live.model.digest("hidden") == live.model.parameter("hidden").digest()
    info = live.model.parameter("head.bias").info()
    assert isinstance(info, ParameterInfo) and info.shape == (4,) and info.stats is None


def test_reads_are_bit_for_bit(live: Served) -> None:
    state = {**dict(live.module.named_parameters()), **dict(live.module.named_buffers())}
    for path, tensor in state.items():
        array, step = live.model.read(path, with_step=True)
        assert bits(array) == bits(tensor) and step == 0
    assert bits(live.model.parameter("twin.bias").read()) == bits(net(live).head.bias)


def test_a_read_is_an_array_of_its_own(live: Served) -> None:
    for path in ("head.bias", "large"):
        before = fingerprint(live.module)
        array = live.model.read(path)
        assert isinstance(array, numpy.ndarray) and array.flags.writeable
        array[...] = 0
        assert fingerprint(live.module) == before


def test_a_list_of_paths_gives_a_dict(live: Served) -> None:
    paths = ["large", "brief", "head.bias"]
    found, step = live.model.read(paths, with_step=True)
    assert list(found) == paths and step == 0
    assert {path: bits(array) for path, array in found.items()} == {
        path: bits(live.module.state_dict()[path]) for path in paths
    }
    assert list(live.model.read(("brief",))) == ["brief"]
    assert live.model.read([]) == {}


def test_gradients_and_optimizer_state() -> None:
    module = Net()
    optimizer = torch.optim.Adam(module.parameters())
    with served(module, optimizer) as live:
        with pytest.raises(FailedPrecondition) as refusal:
            live.model.read("head.bias", "grad")
        assert refusal.value.reason == "NO_GRAD"
        train(module, optimizer)
        assert bits(live.model.parameter("head.bias").grad()) == bits(module.head.bias.grad)
        average, step = live.model.read("head.bias", "exp_avg", with_step=True)
        assert bits(average) == bits(optimizer.state[module.head.bias]["exp_avg"]) and step == 1


def test_all_of_a_list_are_of_one_step() -> None:
    module = nn.ParameterDict({"a": torch.zeros(300_000), "b": torch.zeros(300_000)})
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)

    def iteration() -> None:
        optimizer.zero_grad(set_to_none=False)
        for parameter in module.values():
            parameter.grad = -torch.ones_like(parameter)
        optimizer.step()

    with served(module, optimizer) as live, running_loop(iteration):
        for _ in range(10):
            found = live.model.read(["a", "b"])
            values = {
                float(value) for array in found.values() for value in numpy.unique(numpy.asarray(array))
            }
            assert len(values) == 1


class Structured(nn.Module):
    """Gives back what it is given, in every kind of container."""

    def forward(self, x: torch.Tensor, *, mask: Any = None, flag: bool = True) -> dict[str, Any]:
        return {"x": x * 2, "pair": (x.sum(), [None, 3]), "mask": mask, "flag": flag, "odd": slice(1)}


def test_forward_keeps_the_structure() -> None:
    with served(Structured()) as live:
        x = torch.randn(2, 3)
        for given in (x, x.numpy()):
            out = live.model.forward(given, mask=[x.bool(), None], flag=False)
            assert list(out) == ["x", "pair", "mask", "flag", "odd"]
            assert bits(out["x"]) == bits(x * 2)
            assert (
                isinstance(out["pair"], tuple) and out["pair"][0].shape == () and out["pair"][1] == [None, 3]
            )
            assert bits(out["mask"][0]) == bits(x.bool()) and out["mask"][1] is None
            assert out["flag"] is False
            assert isinstance(out["odd"], Opaque) and "slice" in out["odd"].type


def test_forward_is_the_models_own(live: Served) -> None:
    x = torch.randn(5, 8)
    before = fingerprint(live.module)
    out = live.model.forward(x, scale=2.0)
    live.module.eval()
    with torch.no_grad():
        assert numpy.allclose(out, live.module(x, scale=2.0).numpy(), rtol=1e-6)
    live.module.train()
    assert fingerprint(live.module) == before
    assert not numpy.allclose(live.model.forward(x, mode="train", scale=2.0), out)
    large = torch.randn(20_000, 8)
    assert live.model.forward(large).shape == (20_000, 4)
    with pytest.raises(InvalidArgument, match="mat1 and mat2") as refusal:
        live.model.forward(torch.randn(5, 9))
    assert refusal.value.reason == "FORWARD_RAISED"
    with pytest.raises(InvalidArgument, match=r"args\[0\] is a object"):
        live.model.forward(object())


def test_module_handles(live: Served) -> None:
    body = live.model.module("body")
    assert body.info().repr == repr(net(live).body)
    assert [child.path for child in body.children()] == ["body.0", "body.1", "body.2"]
    assert [module.path for module in body.modules()] == ["body", "body.0", "body.1", "body.2"]
    assert [module.path for module in body.modules(type="Linear")] == ["body.0"]
    assert [p.path for p in body.parameters()] == [f"body.{n}" for n, _ in net(live).body.named_parameters()]
    assert [b.path for b in body.buffers()] == [f"body.{n}" for n, _ in net(live).body.named_buffers()]
    assert len(live.model.module().parameters()) == len(list(live.module.parameters()))


def test_roles(live: Served) -> None:
    with connect(live.scope.address, token=live.scope.viewer_token) as viewer:
        model = viewer.model()
        assert bits(model.read("head.bias")) == bits(net(live).head.bias)
        with pytest.raises(PermissionDenied) as refusal:
            model.write("head.bias", fill=0)
        assert refusal.value.reason == "VIEWER_TOKEN"
    with connect(live.scope.address, token="wrong") as nobody, pytest.raises(Unauthenticated):
        nobody.model()


def test_a_deadline_where_no_step_boundary_comes(live: Served) -> None:
    entered, leave = threading.Event(), threading.Event()

    def block(*_: Any) -> None:
        entered.set()
        assert leave.wait(60)

    optimizer = torch.optim.SGD(live.module.parameters(), lr=0.1)
    hook = net(live).body[0].register_forward_hook(block)
    trainer = threading.Thread(target=train, args=(live.module, optimizer))
    trainer.start()
    try:
        assert entered.wait(30)
        before = fingerprint(live.module)
        with connect(live.scope.address, token=live.scope.token, timeout=0.5) as hasty:
            model = hasty.model()
            for call in (
                lambda: model.write("head.bias", fill=0),
                lambda: model.write("large", torch.zeros(600, 1000)),
                lambda: model.load_state_dict(Net().state_dict()),
                lambda: model.freeze("body"),
            ):
                with pytest.raises(DeadlineExceeded) as late:
                    call()
                assert late.value.reason == "NO_SAFE_POINT" and late.value.hint
            assert model.modules()
        assert fingerprint(live.module) == before
    finally:
        hook.remove()
        leave.set()
        trainer.join(60)


def test_a_client_after_its_server() -> None:
    with modscope_server.attach(Net()) as scope:
        client = connect(scope.address, token=scope.token, timeout=5)
        model = client.model()
    with client:
        for call in (client.models, lambda: model.read("head.bias"), model.state_dict, model.modules):
            with pytest.raises(Unavailable) as gone:
                call()
            assert gone.value.reason == "UNREACHABLE" and "modscope ps" in gone.value.hint


def test_a_client_finds_a_server_again_that_came_back(tmp_path: Path) -> None:
    address = f"unix:{os.environ['MODSCOPE_RUNTIME_DIR']}/again"
    with connect(address, token="t", timeout=20) as client:
        for bias in (1.0, 2.0):
            module = Net()
            nn.init.constant_(module.head.bias, bias)
            with modscope_server.attach(module, address=address, token="t"):
                assert numpy.asarray(client.model().read("head.bias")).tolist() == [bias] * 4
            with pytest.raises(Unavailable):
                client.models()


def test_a_client_is_shared_by_threads(live: Served) -> None:
    failures: list[BaseException] = []

    def work(client: Client) -> None:
        try:
            for _ in range(5):
                assert bits(client.model().read("large")) == bits(net(live).large)
                assert len(client.model().state_dict()) == len(live.module.state_dict())
        except BaseException as error:
            failures.append(error)

    workers = [threading.Thread(target=work, args=(live.client,)) for _ in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert not failures
