"""Every error that is raised for a caller says what to do next."""

from __future__ import annotations

import ast
from pathlib import Path

import modscope_server
from modscope_server import errors

SOURCES = sorted(Path(modscope_server.__file__).parent.rglob("*.py"))
LEAVES = {
    name
    for name in errors.__all__
    if "reason" in vars(getattr(errors, name)) and name not in ("ModscopeServerError", "Closed")
}
"""All but Closed, which brings a hint of its own."""


def raised(source: Path) -> list[tuple[int, ast.Call]]:
    calls = (node for node in ast.walk(ast.parse(source.read_text())) if isinstance(node, ast.Call))
    return [
        (call.lineno, call)
        for call in calls
        if isinstance(call.func, ast.Name) and call.func.id in LEAVES and call.args
    ]


def test_every_refusal_has_a_hint() -> None:
    found = [(source.name, line, call) for source in SOURCES for line, call in raised(source)]
    assert len(found) > 100
    without = [
        (name, line)
        for name, line, call in found
        if not any(keyword.arg in ("hint", None) for keyword in call.keywords)
    ]
    assert without == []


def test_a_closed_server_says_where_to_go() -> None:
    assert errors.Closed().hint
    assert errors.Closed("it closed").hint
