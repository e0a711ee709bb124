"""The examples run as they stand, and the demo fails where it should."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from examples import demo
from tests.end_to_end.jobs import EXAMPLES, job
from tests.end_to_end.serving import TIMEOUT


def test_plain_loop_finds_the_line() -> None:
    with job(str(EXAMPLES / "plain_loop.py"), "--steps", "1500") as running:
        code, out, err = running.end()
    assert code == 0, err
    assert out.startswith("after 1500 steps: y = 3.0")


def test_digits_learn() -> None:
    with job(str(EXAMPLES / "digits.py"), "--epochs", "4") as running:
        code, out, err = running.end()
    assert code == 0, err
    lines = out.splitlines()
    assert [line.split()[1] for line in lines] == ["1", "2", "3", "4"]
    assert float(lines[-1].split()[-1]) > 0.8


def test_watch_to_csv(tmp_path: Path) -> None:
    with job(str(EXAMPLES / "plain_loop.py"), "--steps", str(10**9)) as running:
        running.server()
        done = subprocess.run(
            [
                *(sys.executable, str(EXAMPLES / "watch_to_csv.py"), str(tmp_path / "out.csv")),
                *("--glob", "layer", "--hook", "forward", "--hook", "backward_pre", "--events", "20"),
            ],
            env=running.environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )
        assert done.returncode == 0, done.stderr
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 20
    assert {row["hook"] for row in rows} == {"forward", "backward_pre"}
    assert {row["role"] for row in rows} == {"output", "grad_output"}
    assert all(float(row["norm"]) >= 0 for row in rows)


@pytest.mark.parametrize("body", ["raise SystemExit(3)", "print('no server')"])
def test_the_demo_fails_with_its_job(
    body: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "job.py"
    script.write_text(body)
    monkeypatch.setattr(demo, "JOB", script)
    assert demo.main() == 1
    assert "FAILED: the training job exited" in capsys.readouterr().err


def test_the_demo_fails_when_something_does_not_hold() -> None:
    with pytest.raises(demo.DemoFailed, match="does not hold: one is two"):
        demo.check(False, "one is two")
