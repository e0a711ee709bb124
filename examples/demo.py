"""The main job, on real data: a classifier learns to read digits, and the CLI looks in and changes it.

    make demo

Starts `examples/digits.py` as a process of its own and, while it trains, runs `modscope` beside it.
Every command is shown with its output, and what it did is checked. Exits 1 when a check fails.
"""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy
from safetensors.numpy import load_file

__all__ = ["main"]

JOB = Path(__file__).with_name("digits.py")
PATIENCE = 115.0
"""Seconds after which the demo gives up."""
SHOWN = 14
"""Lines of a command's output that are printed."""


class DemoFailed(Exception):
    """A command did not do what it should."""


class Job:
    """The training job, its log, and the CLI beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.deadline = time.monotonic() + PATIENCE
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("MODSCOPE_")},
            "MODSCOPE_RUNTIME_DIR": str(folder / "run"),
            "NO_COLOR": "1",
            "COLUMNS": "110",
        }
        self.log = folder / "job.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(JOB)], env=self.environment, stdout=log, stderr=subprocess.STDOUT
            )

    def quiet(self, *arguments: str, expect: int = 0) -> str:
        """Runs `modscope ARGUMENTS`, gives its stdout; an unexpected exit code fails the demo."""
        command = [sys.executable, "-m", "modscope_client", *arguments]
        done = subprocess.run(
            command,
            env=self.environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=self.remaining(),
        )
        if done.returncode != expect:
            raise DemoFailed(
                f"`modscope {shlex.join(arguments)}` exited {done.returncode}, not {expect}:\n"
                f"{done.stdout}{done.stderr}"
            )
        return done.stdout if expect == 0 else done.stderr

    def shown(self, *arguments: str, expect: int = 0) -> str:
        """As `quiet`, and prints the command and the head of its output."""
        print(f"\n$ modscope {shlex.join(arguments)}")
        output = self.quiet(*arguments, expect=expect)
        lines = output.rstrip().splitlines()
        print("\n".join(lines[:SHOWN]))
        if len(lines) > SHOWN:
            print(f"... {len(lines) - SHOWN} more lines")
        return output

    def json(self, *arguments: str) -> Any:
        """Runs `modscope -o json ARGUMENTS`, gives what it printed."""
        return json.loads(self.quiet("-o", "json", *arguments))

    def step(self) -> int:
        """Training iterations that the job has completed."""
        return int(self.json("models")[0]["step"])

    def alive(self) -> None:
        """Fails the demo where the job has ended."""
        if self.process.poll() is not None:
            raise DemoFailed(f"the training job exited {self.process.returncode}:\n{self.log.read_text()}")

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Returns when the condition holds; fails the demo when it does not in time."""
        while not condition():
            self.alive()
            if self.remaining() == 0:
                raise DemoFailed(f"{PATIENCE:.0f} s were not enough for {what}")

    def remaining(self) -> float:
        """Seconds that are left."""
        return max(0.0, self.deadline - time.monotonic())

    def accuracies(self) -> list[float]:
        """The job's own account, one number for each time it went over the data."""
        return [float(number) for number in re.findall(r"accuracy ([0-9.]+)\n", self.log.read_text())]


@contextmanager
def training_job(folder: Path) -> Iterator[Job]:
    """The job, stopped for certain when the block is left."""
    job = Job(folder)
    try:
        yield job
    finally:
        if job.process.poll() is None:
            job.process.kill()
        job.process.wait()


def check(holds: bool, what: str) -> None:
    """Prints what holds, or fails the demo."""
    if not holds:
        raise DemoFailed(f"does not hold: {what}")
    print(f"  ok: {what}")


def look(job: Job) -> None:
    """What the model is made of, what its parameters are, what flows through it."""
    job.shown("models")
    check(job.json("models")[0]["writable"], "one model is served, and may be written")

    job.shown("tree")
    paths = [module["path"] for module in job.json("modules")]
    check(
        paths[:3] == ["", "features", "features.conv1"] and "head.fc2" in paths, "modules in PyTorch's order"
    )

    job.shown("params", "--stats")
    norms = [parameter["stats"]["norm"] for parameter in job.json("params", "--stats")]
    check(len(norms) == 10 and all(math.isfinite(norm) for norm in norms), "10 parameters, all finite")

    job.shown("watch", "*", "--type", "ReLU", "--count", "6")
    lines = job.quiet("-o", "jsonl", "watch", "*", "--type", "ReLU", "--count", "6").splitlines()
    events = [json.loads(line) for line in lines]
    check(
        len(events) == 6 and all(value["stats"]["min"] >= 0 for event in events for value in event["values"]),
        "six activations while it trains, none negative after a ReLU",
    )

    job.shown("-o", "json", "get", "head.fc2.bias", "--what", "grad")
    check(job.json("get", "head.fc2.bias", "--what", "grad")["shape"] == [10], "a gradient as it is read")


def freeze(job: Job) -> None:
    """A frozen weight stands still while the rest learns."""
    job.shown("freeze", "features.conv1")

    def values(name: str) -> tuple[bytes, bytes]:
        for path in ("features.conv1.weight", "features.conv2.weight"):
            job.quiet("get", path, "--out", f"{name}-{path}.npy")
        frozen, learning = (
            numpy.load(job.folder / f"{name}-{path}.npy").tobytes()
            for path in ("features.conv1.weight", "features.conv2.weight")
        )
        return frozen, learning

    before, step = values("before"), job.step()
    job.until(lambda: job.step() >= step + 20, "20 more steps")
    after = values("after")
    check(before[0] == after[0], "20 steps later the frozen weight is the same, bit for bit")
    check(before[1] != after[1], "and another weight is not")


def change(job: Job) -> None:
    """New weights for all Linear layers and one bias set by hand, looked at while frozen."""
    job.shown("freeze", "*", "--type", "Linear")
    reinit = (
        "reinit",
        "*",
        "--type",
        "Linear",
        "--param",
        "weight",
        "--scheme",
        "normal_",
        "--arg",
        "std=0.02",
    )
    job.shown(*reinit)
    job.shown("params", "head", "--stats")
    weights = [
        parameter
        for parameter in job.json("params", "head", "--stats")
        if parameter["path"].endswith(".weight")
    ]
    check(
        len(weights) == 2
        and all(math.isclose(weight["stats"]["std"], 0.02, rel_tol=0.15) for weight in weights)
        and all(abs(weight["stats"]["mean"]) < 0.004 for weight in weights),
        "both Linear weights are drawn from normal(0, 0.02)",
    )

    job.shown("set", "head.fc2.bias", "--value", json.dumps([0.5] + [0.0] * 9))
    value = job.json("get", "head.fc2.bias")["value"]
    check(value == [0.5] + [0.0] * 9, "the bias is what was set")

    job.shown("set", "head.fc2.bias", "--value", "[1.0, 2.0]", expect=5)
    check(job.json("get", "head.fc2.bias")["value"] == value, "a wrong shape is refused, nothing changed")


def take_back(job: Job) -> None:
    """The run held, led step by step, one change undone, and the run let go."""
    job.shown("run", "pause", "--lease", "60s")
    here = job.step()
    check(job.step() == here, "a paused run stands, and serves requests")
    before = job.json("get", "head.fc2.bias")["value"]
    operation = job.json("set", "head.fc2.bias", "--fill", "3")["id"]
    job.shown("ops")
    job.shown("undo", operation)
    check(job.json("get", "head.fc2.bias")["value"] == before, "the bias is what it was, bit for bit")
    job.shown("run", "step", "5")
    check(job.step() == here + 5, "five iterations, no more")
    job.shown("run", "resume")
    job.until(lambda: job.step() > here + 5, "training goes on")


def save(job: Job) -> None:
    """The state_dict as safetensors."""
    job.shown("state", "save", "model.safetensors")
    saved = load_file(job.folder / "model.safetensors")
    keys = [entry["key"] for entry in job.json("state", "keys")]
    check(sorted(saved) == sorted(keys) and "features.norm.running_mean" in saved, "it has every key")
    for path in ("features.conv1.weight", "head.fc1.weight"):
        job.quiet("get", path, "--out", "frozen.npy")
        check(
            saved[path].tobytes() == numpy.load(job.folder / "frozen.npy").tobytes(),
            f"the frozen {path} is the same in the file, bit for bit",
        )


def learn_again(job: Job) -> None:
    """Everything trains again, and the job reads digits as well as before."""
    job.shown("unfreeze", "*")
    check(not job.json("params", "--frozen"), "nothing is frozen")
    epochs = len(job.accuracies())
    job.until(
        lambda: job.step() > 0 and any(accuracy > 0.9 for accuracy in job.accuracies()[epochs + 1 :]),
        "an accuracy above 0.9 with the new weights",
    )
    job.alive()
    job.process.send_signal(signal.SIGINT)
    status = job.process.wait(timeout=job.remaining())
    print("\nThe end of the job's own log:\n" + "\n".join(job.log.read_text().splitlines()[-3:]))
    check(status == 0, "the job trained all the while, learned again, and exited 0 when it was stopped")


def main() -> int:
    """Runs the demo; gives the exit code."""
    started = time.monotonic()
    print("`modscope` is `python -m modscope_client`; a training job starts in the background.")
    try:
        with tempfile.TemporaryDirectory(prefix="modscope-demo-") as name, training_job(Path(name)) as job:
            job.until(lambda: bool(job.json("ps")), "a server on this host")
            job.until(lambda: job.step() > 0, "a first step")
            job.shown("ps")
            for part in (look, freeze, change, take_back, save):
                part(job)
                job.alive()
            learn_again(job)
    except (DemoFailed, subprocess.TimeoutExpired) as error:
        print(f"\nFAILED: {error}", file=sys.stderr)
        return 1
    print(f"\nDone in {time.monotonic() - started:.0f} s.")
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the job and its files go too
    sys.exit(main())
