"""Paths in commands: pasted into a shell, the glob selects just what was named."""

from __future__ import annotations

import shlex
import subprocess

import pytest
import torch
from torch import nn
from torch.optim import SGD

from modscope.paths import compile_glob
from modscope_server.inspection.commands import glob_of, named
from modscope_server.inspection.freezing import plan_unfreeze
from modscope_server.inspection.optimizer_additions import plan_add_to_optimizer
from modscope_server.inspection.optimizers import Groups

PATHS = {
    "one": ["w1.bias"],
    "several": ["w1.bias", "w2.weight"],
    "star": ["a*", "a?b", "[x]", "{y}", "a,b", "back\\slash"],
    "quotes": ["it's", 'say "x"', "$HOME", "`ls`", "a b", "new\nline", "semi;colon", "ünï"],
    "dash": ["-x", "--help"],
    "tilde": ["~", "#x", "!x"],
}


@pytest.mark.parametrize("name", PATHS)
def test_a_shell_gives_the_glob_and_the_glob_gives_the_paths(name: str) -> None:
    paths = PATHS[name]
    for chosen in ([paths[0]], paths):
        text = glob_of(chosen)
        script = f"printf '%s' {text}"
        glob = subprocess.run(["/bin/sh", "-c", script], capture_output=True, check=True).stdout.decode()
        assert not glob.startswith("-")
        matches = compile_glob(glob).fullmatch
        others = [*(path for value in PATHS.values() for path in value), "axx", "ab", "x", "y"]
        assert {path for path in others if matches(path)} == set(chosen)


def test_of_many_paths_those_of_a_module_become_one_pattern() -> None:
    every = [f"layers.{place}.{name}" for place in range(2000) for name in ("weight", "bias")]
    assert glob_of(every, [*every, "head.weight"]) == "'layers.*'"
    assert glob_of(every, every) == "'*'"
    some = every[: 2 * 30 + 1]
    matches = compile_glob(shlex.split(glob_of(some, every))[0]).fullmatch
    assert [path for path in every if matches(path)] == some
    assert "{layers.0.*,layers.1.*" in glob_of(some, every)
    assert glob_of(every[:20], every).count("weight") == 10


def test_a_sentence_names_the_first_twenty() -> None:
    assert named(["a", "b"]) == "a, b"
    assert named(map(str, range(50))).endswith("18, 19 and 30 more")


def test_the_command_of_a_thawing_is_one_that_works() -> None:
    model = nn.Module()
    for place, name in enumerate(["a b*", "it's", "{x,y}", "plain"]):
        model.register_parameter(name, nn.Parameter(torch.full((1,), float(place)), requires_grad=False))
    optimizer = SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    groups = Groups.of([optimizer])
    (note,) = plan_unfreeze(model, "*", "", groups).apply()
    command = note.partition("to have them trained, ")[2]
    program, *words = shlex.split(command)
    assert (program, words[:2]) == ("modscope", ["optim", "add"])
    plan_add_to_optimizer(model, groups, words[2]).apply()
    assert optimizer.param_groups[0]["params"][1:] == list(model.parameters())
