"""The client and every verb in an environment that has their base dependencies and nothing else."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import subprocess
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import pytest
import torch
from packaging.requirements import Requirement
from torch import nn

import modscope_server
from modscope_client import connect
from modscope_client.cli.main import program

PACKAGES = ("modscope", "modscope_client", "modscope_server")
ABSENT = ("torch", "safetensors", "transformers", "sklearn", "grpc_health", "grpc_reflection")


def base_dependencies() -> dict[str, importlib.metadata.Distribution]:
    """The distributions that installing modscope without extras brings, by name."""
    found: dict[str, importlib.metadata.Distribution] = {}
    wanted = ["modscope"]
    while wanted:
        distribution = importlib.metadata.distribution(wanted.pop())
        for text in distribution.requires or []:
            requirement = Requirement(text)
            needed = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            if needed and requirement.name not in found:
                found[requirement.name] = importlib.metadata.distribution(requirement.name)
                wanted.append(requirement.name)
    return found


def link(distribution: importlib.metadata.Distribution, site: Path) -> None:
    """Links the files of an installed distribution into a site-packages folder."""
    for file in distribution.files or []:
        if ".." not in file.parts and "__pycache__" not in file.parts:
            target = site / file
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(Path(str(distribution.locate_file(file))))


class Thin:
    """A virtual environment without torch, from distributions that are installed already."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, with_pip=False, symlinks=True)
        self.python = folder / "bin" / "python"
        site = next((folder / "lib").glob("python*/site-packages"))
        for distribution in base_dependencies().values():
            link(distribution, site)
        for name in PACKAGES:
            (site / name).symlink_to(next(iter(importlib.import_module(name).__path__)))
        points = importlib.metadata.distribution("modscope").read_text("entry_points.txt")
        (site / "modscope-0.dist-info").mkdir()
        (site / "modscope-0.dist-info" / "entry_points.txt").write_text(str(points))

    def run(self, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        """Runs its Python; variables of ours that are not in `settings` are as in this process."""
        return subprocess.run(
            [self.python, "-I", "-B", *arguments],
            env={**os.environ, **settings},
            capture_output=True,
            text=True,
            timeout=60,
        )


class Job(NamedTuple):
    """A served model and the optimizer that trains it."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scope: modscope_server.Scope

    def step(self) -> None:
        """One training iteration."""
        loss = self.model(torch.ones(2, 3)).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


@pytest.fixture(scope="module")
def thin(tmp_path_factory: pytest.TempPathFactory) -> Thin:
    return Thin(tmp_path_factory.mktemp("thin"))


@pytest.fixture(scope="module")
def job() -> Iterator[Job]:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with modscope_server.attach(model, optimizer=optimizer, writable=True) as scope:
        with connect(scope.address, token=scope.token) as client:
            assert client.model().write("1.bias", fill=0.5).id == "op-1"
        yield Job(model, optimizer, scope)


def verb(thin: Thin, job: Job, *words: str) -> subprocess.CompletedProcess[str]:
    """Runs a verb in the thin environment against the job."""
    return thin.run(
        "-m",
        "modscope_client",
        *words,
        MODSCOPE_ADDRESS=job.scope.address,
        MODSCOPE_TOKEN=job.scope.token,
        NO_COLOR="1",
    )


def data_of(done: subprocess.CompletedProcess[str]) -> Any:
    """What a verb printed under `-o json`."""
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", ABSENT)
def test_the_environment_is_thin(thin: Thin, name: str) -> None:
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({name!r}) is not None)"
    assert thin.run("-c", code).returncode == 0


def test_every_module_of_the_client_imports(thin: Thin) -> None:
    code = (
        "import importlib, pkgutil, modscope, modscope_client\n"
        "for package in (modscope, modscope_client):\n"
        "    for found in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):\n"
        "        if not found.name.endswith('__main__'):\n"
        "            importlib.import_module(found.name)\n"
        "            print(found.name)\n"
    )
    done = thin.run("-W", "error", "-c", code)
    assert done.returncode == 0, done.stderr
    assert {"modscope.wire", "modscope_client.client", "modscope_client.cli.main"} <= set(done.stdout.split())


def test_attach_says_what_is_missing(thin: Thin) -> None:
    done = thin.run("-c", "import modscope_server; modscope_server.attach(None)")
    assert done.returncode == 1
    assert "torch" in done.stderr.splitlines()[-1]


LOOKS = {
    "ps": ["ps"],
    "models": ["models"],
    "ls": ["ls"],
    "tree": ["tree"],
    "modules": ["modules", "--type", "Linear"],
    "params": ["params", "--stats"],
    "buffers": ["buffers"],
    "show": ["show", "0.weight"],
    "get": ["get", "0.weight"],
    "hooks": ["hooks"],
    "state": ["state", "keys"],
    "optim": ["optim"],
    "ops": ["ops"],
    "run": ["run", "status"],
}
"""Verbs that print what is there, and change nothing."""

CHANGES = {
    "set": ["set", "0.bias", "--fill", "0.5"],
    "freeze": ["freeze", "2.*"],
    "unfreeze": ["unfreeze", "2.*"],
    "reinit": [
        "reinit",
        "*",
        "--param",
        "weight",
        "--type",
        "Linear",
        "--scheme",
        "normal_",
        "--arg",
        "std=0.02",
    ],
    "undo": ["undo", "op-1"],
}
"""Verbs that change the model, each of which prints its Operation."""

ELSEWHERE = {
    "forward", "intervene", "unhook", "watch", "export", "record", "replay", "completion", "snapshot",
}  # fmt: skip


def test_every_verb_is_tried_here() -> None:
    assert {*LOOKS, *CHANGES, *ELSEWHERE} == set(program.list_commands(click.Context(program)))


@pytest.mark.parametrize("name", LOOKS)
def test_verbs_that_look(thin: Thin, job: Job, name: str) -> None:
    assert data_of(verb(thin, job, "-o", "json", *LOOKS[name])) not in (None, "")
    done = verb(thin, job, *LOOKS[name])
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize("output", ["yaml", "jsonl", "name"])
def test_every_form_of_output(thin: Thin, job: Job, output: str) -> None:
    done = verb(thin, job, "-o", output, "models")
    assert done.returncode == 0, done.stderr
    assert "model" in done.stdout


@pytest.mark.parametrize("name", CHANGES)
def test_verbs_that_change(thin: Thin, job: Job, name: str) -> None:
    operation = data_of(verb(thin, job, "-o", "json", *CHANGES[name]))
    assert operation["outcome"] == "applied"
    assert operation["paths"]


def test_the_optimizer_is_reached(thin: Thin, job: Job) -> None:
    assert verb(thin, job, "optim", "set", "lr=0.5", "betas=[0.5, 0.75]").returncode == 0
    (group,) = job.optimizer.param_groups
    assert (group["lr"], tuple(group["betas"])) == (0.5, (0.5, 0.75))


def test_a_snapshot_and_back(thin: Thin, job: Job) -> None:
    before = job.model.get_parameter("2.weight").detach().clone()
    assert data_of(verb(thin, job, "snapshot", "save", "before", "-o", "json"))["name"] == "before"
    assert verb(thin, job, "set", "2.weight", "--fill", "7").returncode == 0
    assert verb(thin, job, "snapshot", "list", "-o", "name").stdout == "before\n"
    assert verb(thin, job, "snapshot", "restore", "before").returncode == 0
    assert torch.equal(job.model.get_parameter("2.weight"), before)
    assert verb(thin, job, "snapshot", "drop", "before").returncode == 0
    assert data_of(verb(thin, job, "snapshot", "list", "-o", "json")) == []


def test_an_intervention_comes_and_goes(thin: Thin, job: Job) -> None:
    made = data_of(verb(thin, job, "intervene", "0", "--scale", "2", "-o", "json"))
    listed = data_of(verb(thin, job, "hooks", "-o", "json"))
    assert any(made["id"] in hook.values() for hook in listed), listed
    assert verb(thin, job, "unhook", made["id"]).returncode == 0
    assert not any(made["id"] in hook.values() for hook in data_of(verb(thin, job, "hooks", "-o", "json")))


def test_set_reaches_the_model(thin: Thin, job: Job) -> None:
    assert verb(thin, job, "set", "0.bias", "--fill", "0.25").returncode == 0
    assert torch.equal(job.model.get_parameter("0.bias"), torch.full((4,), 0.25))


def test_the_state_dict_goes_into_a_file_and_back(thin: Thin, job: Job, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    file = tmp_path / "model.safetensors"
    done = verb(thin, job, "state", "save", str(file))
    assert done.returncode == 0, done.stderr
    saved = load_file(file)
    expected = job.model.state_dict()
    assert saved.keys() == expected.keys()
    assert all(torch.equal(saved[key], value) for key, value in expected.items())
    with torch.no_grad():
        job.model.get_parameter("0.weight").zero_()
    done = verb(thin, job, "state", "load", str(file))
    assert done.returncode == 0, done.stderr
    assert torch.equal(job.model.get_parameter("0.weight"), saved["0.weight"])


def test_forward_runs_the_model(thin: Thin, job: Job, tmp_path: Path) -> None:
    images = np.ones((2, 3), np.float32)
    np.save(tmp_path / "in.npy", images)
    done = verb(thin, job, "forward", "--input", str(tmp_path / "in.npy"), "--out", str(tmp_path / "out.npy"))
    assert done.returncode == 0, done.stderr
    job.model.eval()
    with torch.no_grad():
        expected = job.model(torch.from_numpy(images))
    job.model.train()
    assert np.array_equal(np.load(tmp_path / "out.npy"), expected.numpy())


def test_watch_streams_what_training_does(thin: Thin, job: Job) -> None:
    words = ["-m", "modscope_client", "-o", "json", "watch", "0", "--count", "3"]
    settings = {"MODSCOPE_ADDRESS": job.scope.address, "MODSCOPE_TOKEN": job.scope.token}
    with subprocess.Popen(
        [thin.python, "-I", "-B", *words],
        env={**os.environ, **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as watcher:
        while watcher.poll() is None:
            job.step()
        printed, said = watcher.communicate()
    assert watcher.returncode == 0, said
    events = [json.loads(line) for line in printed.splitlines()]
    assert [(event["path"], event["hook"]) for event in events] == [("0", "forward")] * 3


def test_a_watch_goes_to_disk_and_comes_back(thin: Thin, job: Job, tmp_path: Path) -> None:
    file = str(tmp_path / "watch.msrec")
    done = verb(thin, job, "record", file, "0", "--duration", "100ms")
    assert done.returncode == 0, done.stderr
    assert verb(thin, job, "replay", file, "-o", "jsonl").stdout == ""
    assert "0 events" in verb(thin, job, "replay", file).stderr


def test_export_without_an_extra(thin: Thin, job: Job, tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    done = verb(thin, job, "export", "jsonl", str(file), "0", "--duration", "100ms")
    assert done.returncode == 0, done.stderr
    assert file.exists()
    for name, arguments in {"tensorboard": [str(tmp_path)], "prometheus": ["--port", "0"]}.items():
        done = verb(thin, job, "export", name, *arguments)
        assert done.returncode == 5, done.stderr
        assert f"pip install 'modscope[{name}]'" in done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(thin: Thin, job: Job, shell: str) -> None:
    done = verb(thin, job, "completion", shell)
    assert done.returncode == 0, done.stderr
    assert "modscope" in done.stdout


def test_no_base_dependency_brings_torch() -> None:
    names = set(base_dependencies())
    assert {"grpcio", "numpy", "protobuf"} <= names
    assert not names & {"torch", "safetensors"}
