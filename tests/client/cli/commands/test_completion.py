"""completion: scripts for shells, and what they are answered."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from tests.client.cli.conftest import Live, Modscope


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script(shell: str, modscope: Modscope) -> None:
    outcome = modscope("completion", shell)
    assert outcome.code == 0
    assert "_MODSCOPE_COMPLETE" in outcome.out
    assert "modscope" in outcome.out
    if shutil.which(shell) and shell != "fish":
        assert subprocess.run([shell, "-n"], input=outcome.out, text=True, timeout=30).returncode == 0


def test_no_such_shell(modscope: Modscope) -> None:
    assert modscope("completion", "tcsh").code == 2


def completed(line: str, modscope: Modscope, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What bash is told where the cursor stands at the end of the line."""
    monkeypatch.setenv("_MODSCOPE_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(line.split(" ")) - 1))
    outcome = modscope()
    assert (outcome.code, outcome.err) == (0, "")
    return [answer.partition(",")[2] for answer in outcome.lines if answer]


def test_verbs(modscope: Modscope, monkeypatch: pytest.MonkeyPatch) -> None:
    assert completed("modscope mod", modscope, monkeypatch) == ["models", "modules"]
    assert completed("modscope state s", modscope, monkeypatch) == ["save"]


def test_paths_of_the_model(live: Live, modscope: Modscope, monkeypatch: pytest.MonkeyPatch) -> None:
    assert completed("modscope ls bo", modscope, monkeypatch) == ["body", "body.0", "body.1", "body.2"]
    assert completed("modscope get body.0.", modscope, monkeypatch) == ["body.0.weight", "body.0.bias"]
    assert completed("modscope show embed", modscope, monkeypatch) == ["embed", "embed.weight"]


def test_no_server_completes_nothing(modscope: Modscope, monkeypatch: pytest.MonkeyPatch) -> None:
    assert completed("modscope --address unix:/no/such ls bo", modscope, monkeypatch) == []


def test_operations_and_snapshots(live: Live, modscope: Modscope, monkeypatch: pytest.MonkeyPatch) -> None:
    for words in (("set", "scale", "--fill", "2"), ("freeze", "scale"), ("snapshot", "save", "before")):
        assert modscope(*words).code == 0
    assert completed("modscope undo ", modscope, monkeypatch) == ["op-2", "op-1"]
    assert completed("modscope snapshot restore b", modscope, monkeypatch) == ["before"]
    assert completed("modscope optim add sc", modscope, monkeypatch) == ["scale"]
    assert completed("modscope run br", modscope, monkeypatch) == ["break", "breaks"]
