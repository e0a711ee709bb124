"""The program: help, global options, errors as text, as JSON and as exit codes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import modscope_client.discovery
from modscope import __version__
from modscope_client.cli.main import VERBS, program, report, run
from modscope_client.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    ModscopeError,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
)
from tests.client.cli.conftest import Live, Modscope

ALL_VERBS = [verb for verbs in VERBS.values() for verb in verbs]


def process(*arguments: str, code: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """The program in a process of its own; or `code`, with the arguments in sys.argv."""
    command = ["-c", code] if code else ["-m", "modscope_client"]
    return subprocess.run(
        [sys.executable, *command, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def loaded_by(*arguments: str) -> set[str]:
    """The modules that a run of the program imports."""
    code = (
        "import sys; from modscope_client.__main__ import main; code = main();"
        "print(*sys.modules, file=sys.stderr); sys.exit(code)"
    )
    done = process(*arguments, code=code)
    assert done.returncode == 0, done.stderr
    return set(done.stderr.split())


def below(package: str, modules: set[str]) -> set[str]:
    return {name for name in modules if name == package or name.startswith(f"{package}.")}


def test_help_imports_no_verb_and_nothing_heavy() -> None:
    modules = loaded_by("--help")
    for package in ("grpc", "google.protobuf", "numpy", "rich", "yaml", "modscope.v1"):
        assert not below(package, modules)
    assert not below("modscope_client.cli.commands", modules)


@pytest.mark.parametrize("verb", ["ls", "models", "tree"])
def test_a_listing_imports_only_what_it_needs(verb: str, live: Live) -> None:
    modules = loaded_by(verb)
    for package in (
        "numpy",
        "ml_dtypes",
        "rich",
        "yaml",
        "torch",
        "safetensors",
        "grpc_status",
        "google.rpc",
        "modscope.v1.operation_service_pb2",
        "modscope.v1.optimizer_service_pb2",
        "modscope.v1.snapshot_service_pb2",
        "modscope.v1.run_service_pb2",
        "modscope.v1.lease_service_pb2",
        "modscope_client.change_types",
        "modscope_client.run",
        "modscope_client.run_types",
    ):
        assert not below(package, modules), f"{verb} imports {package}"
    assert below("modscope_client.cli.commands", modules) == {
        "modscope_client.cli.commands",
        f"modscope_client.cli.commands.{verb}",
    }


def test_ps_imports_no_grpc() -> None:
    assert not below("grpc", loaded_by("ps"))


def test_help_of_the_program(modscope: Modscope, golden: object) -> None:
    outcome = modscope("--help")
    assert (outcome.code, outcome.err) == (0, "")
    golden("help", outcome.out)  # type: ignore[operator]
    assert modscope().out == outcome.out
    assert modscope("-h").out == outcome.out


@pytest.mark.parametrize("verb", ALL_VERBS)
def test_help_of_a_verb_has_examples_and_opens_as_the_list_says(verb: str, modscope: Modscope) -> None:
    outcome = modscope(verb, "--help")
    assert outcome.code == 0
    assert f"modscope {verb}" in outcome.out.partition("Examples:")[2]
    summary = next(verbs[verb] for verbs in VERBS.values() if verb in verbs)
    context = program.make_context("modscope", [verb])
    command = program.get_command(context, verb)
    assert command is not None
    assert (command.help or "").splitlines()[0] == summary


@pytest.mark.parametrize(
    ("group", "verbs"),
    [
        ("state", "keys save load"),
        ("export", "tensorboard prometheus jsonl"),
        ("optim", "set add"),
        ("snapshot", "save list restore drop"),
        ("run", "status pause resume step break breaks clear wait"),
    ],
)
def test_help_of_the_verbs_of_a_group(group: str, verbs: str, modscope: Modscope) -> None:
    for verb in verbs.split():
        assert f"$ modscope {group} {verb}" in modscope(group, verb, "--help").out
        assert f"  {verb} " in modscope(group, "--help").out


def test_version() -> None:
    done = process("--version")
    assert (done.returncode, done.stdout) == (0, f"modscope {__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "told", "hint"),
    [
        (["lss"], "no verb 'lss'", "did you mean 'ls'"),
        (["frobnicate"], "no verb 'frobnicate'", "lists the verbs"),
        (["state", "sav"], "no verb 'sav'", "did you mean 'save'"),
        (["ls", "--modle", "x"], "--modle", "modscope ls --help"),
        (["freeze"], "GLOB", "modscope freeze --help"),
        (["-o", "xml", "ls"], "'xml' is not one of", "--help"),
        (["--timeout", "soon", "ls"], "500ms, 10s, 2m", "--help"),
        (["--timeout", "0s", "ls"], "more than 0", "--help"),
        (["modules", "client", "docs"], "docs", "quotes"),
        (["--token-file", "/no/such/file", "ls"], "/no/such/file", "--help"),
        (["--address", "nowhere", "ls"], "unix:/path or host:port", "--help"),
        (["--address", "unix:relative", "run", "status"], "must be absolute", "--help"),
        (["optim", "set"], "NAME=VALUE", "modscope optim set --help"),
        (["optim", "set", "lr"], "lr=3e-4", "modscope optim set --help"),
        (["optim", "set", "lr=fast"], "'fast' is no JSON", "modscope optim set --help"),
        (["optim", "set", "lr=1", "lr=2"], "twice", "modscope optim set --help"),
        (["optim", "set", "group=1"], "no hyper-parameter", "modscope optim set --help"),
        (["freeze", "w", "--expected", "sha256:0"], "PATH=DIGEST", "modscope freeze --help"),
        (["run", "step", "0"], "0 is not in the range", "modscope run step --help"),
        (["run", "pause", "--lease", "soon"], "500ms, 10s, 2m", "modscope run pause --help"),
        (["undo"], "ID", "modscope undo --help"),
    ],
)
def test_usage(arguments: list[str], told: str, hint: str, modscope: Modscope) -> None:
    outcome = modscope(*arguments)
    assert (outcome.code, outcome.out) == (2, "")
    error, _, remedy = outcome.err.partition("\nhint: ")
    assert error.startswith("error: ")
    assert told in error
    assert hint in remedy
    as_json = modscope(*arguments, "-o", "json")
    if "xml" not in arguments:
        assert json.loads(as_json.err)["reason"] == "USAGE"
        assert as_json.code == 2


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (NotFound, 3),
        (Unauthenticated, 4),
        (PermissionDenied, 4),
        (InvalidArgument, 5),
        (FailedPrecondition, 5),
        (Unavailable, 6),
        (DeadlineExceeded, 7),
        (ResourceExhausted, 1),
        (Internal, 1),
    ],
)
def test_exit_code_of_each_status(kind: type[ModscopeError], code: int) -> None:
    told, exit_code = report(kind("what", reason="WHY", hint="use cast=True (--cast), or force=True"))
    assert exit_code == code
    assert told == (kind.code, "WHY", "what", "use --cast, or --force")


def test_not_found(live: Live, modscope: Modscope) -> None:
    outcome = modscope("get", "body.0.weigth")
    assert (outcome.code, outcome.out) == (3, "")
    assert outcome.err.startswith("error: ")
    assert "body.0.weigth" in outcome.err
    assert "hint: " in outcome.err
    assert "body.0.weight" in outcome.err.partition("hint: ")[2]


@pytest.mark.parametrize("place", ["before", "after", "both"])
def test_an_error_under_json_is_one_object(place: str, live: Live, modscope: Modscope) -> None:
    option = ["-o", "json"]
    outcome = modscope(
        *(option if place != "after" else []), "ls", "nope", *(option if place != "before" else [])
    )
    error = json.loads(outcome.err)
    assert (outcome.code, outcome.out) == (3, "")
    assert list(error) == ["code", "reason", "message", "hint"]
    assert (error["code"], error["reason"]) == ("NOT_FOUND", "UNKNOWN_PATH")
    assert "nope" in error["message"]


def test_global_options_come_before_the_verb_and_after_it(live: Live, modscope: Modscope) -> None:
    before = modscope("-o", "name", "--model", "model", "--timeout", "5s", "ls")
    after = modscope("ls", "-o", "name", "--model", "model", "--timeout", "5s")
    assert before.lines == after.lines == ["embed", "body", "head"]
    assert modscope("-o", "json", "ls", "-o", "name").lines == before.lines
    assert modscope("ls", "--model", "other").code == 3
    assert modscope("state", "keys", "-o", "name").lines[0] == "scale"


def test_a_wrong_token(live: Live, modscope: Modscope, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("wrong\n")
    outcome = modscope("--token-file", str(tmp_path / "token"), "models", "-o", "json")
    assert outcome.code == 4
    assert json.loads(outcome.err)["reason"] == "BAD_TOKEN"
    (tmp_path / "token").write_text(f"{live.scope.token}\n")
    assert modscope("--token-file", str(tmp_path / "token"), "models").code == 0
    (tmp_path / "token").write_text("\n")
    assert modscope("--token-file", str(tmp_path / "token"), "models").code == 2


def test_a_viewer_cannot_write(live: Live, modscope: Modscope, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODSCOPE_TOKEN", live.scope.viewer_token)
    assert modscope("get", "scale").code == 0
    outcome = modscope("set", "scale", "--fill", "0", "-o", "json")
    assert outcome.code == 4
    assert json.loads(outcome.err)["reason"] == "VIEWER_TOKEN"


def test_no_server_there(modscope: Modscope, tmp_path: Path) -> None:
    outcome = modscope("--address", f"unix:{tmp_path}/none.sock", "ls")
    assert outcome.code == 6
    assert "none.sock" in outcome.err
    assert "modscope ps" in outcome.err


def test_no_answer_in_time(modscope: Modscope) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        outcome = modscope("--address", address, "--timeout", "200ms", "models")
    assert outcome.code == 7
    assert "--timeout" in outcome.err


def test_a_token_is_not_sent_unencrypted_to_another_host(
    modscope: Modscope, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODSCOPE_TOKEN", "t")
    outcome = modscope("--address", "192.0.2.1:50051", "models")
    assert outcome.code == 5
    assert "--tls" in outcome.err
    assert "--insecure" in outcome.err
    assert "=True" not in outcome.err


def test_an_unexpected_error_is_told_without_a_traceback(
    modscope: Modscope, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr(modscope_client.discovery, "servers", fail)
    outcome = modscope("ps")
    assert outcome.code == 1
    assert "boom" in outcome.err
    assert "MODSCOPE_DEBUG" in outcome.err
    assert "Traceback" not in outcome.err
    monkeypatch.setenv("MODSCOPE_DEBUG", "1")
    with pytest.raises(RuntimeError, match="boom"):
        run(["ps"])


def test_interrupted(modscope: Modscope, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(modscope_client.discovery, "servers", interrupt)
    assert modscope("ps").code == 130


def test_a_file_that_cannot_be_written(live: Live, modscope: Modscope, tmp_path: Path) -> None:
    outcome = modscope("get", "scale", "--out", str(tmp_path / "none" / "scale.npy"))
    assert outcome.code == 1
    assert "No such file" in outcome.err
    assert "Traceback" not in outcome.err


def test_a_reader_that_leaves_early_ends_it_quietly(live: Live) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "modscope_client", "modules"], stdout=write, stderr=subprocess.PIPE, timeout=60
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")


def test_no_colour_off_a_terminal(live: Live, modscope: Modscope) -> None:
    for verb in (
        ["tree"],
        ["show", "head"],
        ["show", "scale"],
        ["get", "scale"],
        ["freeze", "scale"],
        ["ls", "nope"],
    ):
        outcome = modscope(*verb)
        assert "\x1b" not in outcome.out + outcome.err


def test_the_console_script_is_this_program() -> None:
    script = Path(sys.executable).with_name("modscope")
    done = subprocess.run([script, "ps", "-o", "json"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert isinstance(json.loads(done.stdout), list)
