"""The client against a real server and a real model, with PyTorch as the oracle."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import safetensors.torch
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
from modscope_client.types import BufferInfo, LoadResult, Opaque, ParameterInfo
from tests.end_to_end.serving import Served, bits, fingerprint, raw, running_loop, served


class Net(nn.Module):
    """Something of everything: nesting, buffers, a tie, several dtypes, a tensor of more than one chunk."""

    brief: torch.Tensor
    hidden: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU())
        self.head = nn.Linear(16, 4)
        self.twin = self.head
        self.large = nn.Parameter(torch.randn(600, 1000))
        self.register_buffer("brief", torch.randn(3).bfloat16())
        self.register_buffer("hidden", torch.arange(3), persistent=False)

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        y: torch.Tensor = self.twin(self.body(x)) * scale
        return y


@pytest.fixture
def live() -> Iterator[Served]:
    torch.manual_seed(0)
    module = Net()
    with served(module, torch.optim.Adam(module.parameters())) as made:
        yield made


def net(live: Served) -> Net:
    assert isinstance(live.module, Net)
    return live.module


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


@pytest.mark.parametrize(
    "make",
    [
        lambda: numpy.arange(4, dtype="f4"),
        lambda: torch.arange(4).float(),
        lambda: nn.Parameter(torch.arange(4).float()),
        lambda: torch.arange(8).float()[::2] / 2,
        lambda: numpy.arange(4, dtype=">f4"),
        lambda: [0, 1, 2, 3],
        lambda: (0.0, 1.0, 2.0, 3.0),
        lambda: TensorData("float32", (4,), numpy.arange(4, dtype="f4").tobytes()),
    ],
)
def test_what_can_be_written(live: Served, make: Any) -> None:
    identity = id(net(live).head.bias)
    operation = live.model.write("head.bias", make())
    assert net(live).head.bias.tolist() == [0, 1, 2, 3] and id(net(live).head.bias) == identity
    assert (operation.kind, operation.model, operation.paths, operation.outcome) == (
        "write",
        "model",
        ("head.bias",),
        "applied",
    )
    assert operation.step == 0 and operation.before is None and not operation.undone
    assert operation.who.startswith("operator")


def test_writes_of_other_dtypes_and_sizes(live: Served) -> None:
    half = torch.randn(3).bfloat16()
    live.model.write("brief", half)
    assert torch.equal(net(live).brief, half)
    large = torch.randn(600, 1000)
    live.model.parameter("large").write(large)
    assert torch.equal(net(live).large, large)
    live.model.write("head.bias", numpy.arange(4.0), cast=True)
    live.model.write("head.weight", fill=0.5)
    assert net(live).head.bias.tolist() == [0, 1, 2, 3] and (net(live).head.weight == 0.5).all()


def test_refused_writes_change_nothing(live: Served) -> None:
    before = fingerprint(live.module)
    for array, options, reason in (
        (numpy.zeros(5, "f4"), {}, "SHAPE_MISMATCH"),
        (numpy.zeros(4), {}, "DTYPE_MISMATCH"),
        (numpy.full(4, numpy.nan, "f4"), {}, "NOT_FINITE"),
        (numpy.full(4, 1j, "c8"), {"cast": True}, "DTYPE_MISMATCH"),
        (None, {"fill": float("inf")}, "NOT_FINITE"),
    ):
        with pytest.raises(InvalidArgument) as refusal:
            live.model.write("head.bias", array, **options)
        assert refusal.value.reason == reason
    assert fingerprint(live.module) == before
    live.model.write("head.bias", numpy.full(4, numpy.nan, "f4"), allow_non_finite=True)
    assert net(live).head.bias.isnan().all()


def test_freezing(live: Served) -> None:
    operation = live.model.freeze("body")
    assert operation.paths == tuple(f"body.{name}" for name, _ in net(live).body.named_parameters())
    assert [p.path for p in live.model.parameters(requires_grad=False)] == list(operation.paths)
    live.model.unfreeze(type="Linear")
    assert {path for path, p in live.module.named_parameters() if not p.requires_grad} == {
        "body.1.weight",
        "body.1.bias",
    }
    live.model.module("body").unfreeze()
    live.model.parameter("large").freeze()
    assert [path for path, p in live.module.named_parameters() if not p.requires_grad] == ["large"]
    with pytest.raises(FailedPrecondition) as refusal:
        live.model.freeze()
    assert refusal.value.reason == "WOULD_BREAK_TRAINING"
    live.model.freeze(force=True)
    assert not any(p.requires_grad for p in live.module.parameters())


def init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, 0.0, 0.02)


def test_reinitialising(live: Served) -> None:
    torch.manual_seed(3)
    expected = Net()
    with torch.no_grad():
        for twin, mine in zip(expected.parameters(), live.module.parameters(), strict=True):
            twin.copy_(mine)
    torch.manual_seed(7)
    expected.apply(init_weights)
    plan = live.model.reinitialize(
        type=nn.Linear, parameter="weight", scheme="normal_", seed=7, mean=0, std=0.02, dry_run=True
    )
    assert plan.outcome == "dry_run"
    assert not torch.equal(net(live).head.weight, expected.head.weight)
    done = live.model.reinitialize(
        type=nn.Linear, parameter="weight", scheme="normal_", seed=7, mean=0, std=0.02
    )
    assert done.paths == plan.paths == ("body.0.weight", "head.weight")
    assert torch.equal(net(live).head.weight, expected.head.weight)
    assert torch.equal(*(one.get_parameter("body.0.weight") for one in (net(live), expected)))
    paths = live.model.module("body").reinitialize(scheme="zeros_", parameter="bias").paths
    assert paths == ("body.0.bias", "body.1.bias")


def test_a_state_dict_down_and_up(live: Served, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    state = live.module.state_dict()
    found = live.model.state_dict(progress=lambda done, total: told.append((done, total)))
    assert list(found) == list(state)
    assert {key: bits(array) for key, array in found.items()} == {key: bits(t) for key, t in state.items()}
    total = sum(tensor.nbytes for tensor in state.values())
    assert told[0] == (0, total) and told[-1] == (total, total) and told == sorted(told)
    keys = live.model.state_dict_keys()
    assert [(spec.key, spec.dtype, spec.shape) for spec in keys.entries] == [
        (key, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)) for key, tensor in state.items()
    ]

    saved = live.model.save_state_dict(tmp_path / "f.safetensors")
    assert saved.entries == keys.entries
    loaded = safetensors.torch.load_file(tmp_path / "f.safetensors")
    assert {key: bits(tensor) for key, tensor in loaded.items()} == {key: bits(t) for key, t in state.items()}

    before = {key: tensor.clone() for key, tensor in state.items()}
    for source in (found, tmp_path / "f.safetensors", before):
        with torch.no_grad():
            for tensor in state.values():
                tensor.zero_()
        result = live.model.load_state_dict(source)
        assert isinstance(result, LoadResult) and result.operation.kind == "load_state_dict"
        assert (result.missing_keys, result.unexpected_keys) == ([], [])
        assert all(torch.equal(state[key], before[key]) for key in state)


def test_keys_as_pytorch_reports_them(live: Served) -> None:
    partial: dict[str, Any] = {"head.bias": torch.ones(4), "nowhere": torch.ones(1)}
    theirs = Net().load_state_dict(partial, strict=False)
    result = live.model.load_state_dict(partial, strict=False)
    assert (result.missing_keys, result.unexpected_keys) == (theirs.missing_keys, theirs.unexpected_keys)
    assert net(live).head.bias.tolist() == [1] * 4
    before = fingerprint(live.module)
    with pytest.raises(FailedPrecondition, match="nowhere") as refusal:
        live.model.load_state_dict(partial)
    assert refusal.value.reason == "KEYS_MISMATCH"
    with pytest.raises(InvalidArgument) as wrong:
        live.model.load_state_dict(
            {**live.module.state_dict(), "brief": torch.ones(4), "large": torch.ones(2)}
        )
    assert (
        wrong.value.reason == "SHAPE_MISMATCH" and "brief" in str(wrong.value) and "large" in str(wrong.value)
    )
    assert fingerprint(live.module) == before


class Stop(Exception):
    """What a test raises in the middle of a transfer."""


def stop_at(bytes_done: int) -> Any:
    def progress(done: int, total: int) -> None:
        if done >= bytes_done:
            raise Stop

    return progress


def test_a_transfer_that_breaks_off_leaves_nothing(live: Served, tmp_path: Path) -> None:
    target = tmp_path / "f.safetensors"
    state = {key: tensor.clone() + 1 for key, tensor in live.module.state_dict().items()}
    before = fingerprint(live.module)
    for at in (0, 1 << 20):
        with pytest.raises(Stop):
            live.model.save_state_dict(target, progress=stop_at(at))
        with pytest.raises(Stop):
            live.model.state_dict(progress=stop_at(at))
        with pytest.raises(Stop):
            live.model.load_state_dict(state, progress=stop_at(at))
    assert os.listdir(tmp_path) == []
    assert fingerprint(live.module) == before
    live.model.load_state_dict(state)
    assert torch.equal(net(live).large, state["large"])


def test_a_dtype_that_a_file_cannot_hold_leaves_no_file(tmp_path: Path) -> None:
    module = nn.Module()
    module.register_buffer("z", torch.zeros(2, dtype=torch.complex128))
    with served(module) as live:
        with pytest.raises(InvalidArgument, match=r"z \(complex128\)") as refusal:
            live.model.save_state_dict(tmp_path / "f")
        assert refusal.value.reason == "UNKNOWN_DTYPE" and os.listdir(tmp_path) == []
        assert bits(live.model.state_dict()["z"]) == bits(module.get_buffer("z"))


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
