"""The grammar of paths: globs against a matcher that follows every way at once."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modscope.paths import BadGlob, compile_glob, join, literal, parent

LETTERS = "ab.\n"


class Glob(NamedTuple):
    """A pattern and what it means: alternatives, each a list of stars, sets of characters and globs."""

    text: str
    ways: list[list[str | frozenset[str] | Glob]]


Item = str | frozenset[str] | Glob
STAR = "*"


def one_of(characters: str, negated: bool) -> tuple[str, Item]:
    """A set and the letters that it takes."""
    taken = set(LETTERS) - set(characters) if negated else set(characters) & set(LETTERS)
    return f"[{'!' if negated else ''}{characters}]", frozenset(taken)


items: st.SearchStrategy[tuple[str, Item]] = st.one_of(
    st.sampled_from(LETTERS).map(lambda letter: (letter, frozenset(letter))),
    st.sampled_from(LETTERS).map(lambda letter: ("\\" + letter, frozenset(letter))),
    st.just((STAR, STAR)),
    st.just(("?", frozenset(LETTERS))),
    st.builds(one_of, st.text(LETTERS, min_size=1, max_size=3), st.booleans()),
)


def braces(ways: list[Glob]) -> tuple[str, Item]:
    """The alternatives of some globs in one pair of braces."""
    text = "{" + ",".join(way.text for way in ways) + "}"
    return text, Glob(text, [items for way in ways for items in way.ways])


def row(parts: list[tuple[str, Item]]) -> Glob:
    """A glob of the parts, one after another."""
    return Glob("".join(text for text, _ in parts), [[item for _, item in parts]])


globs = st.recursive(
    st.lists(items, max_size=5).map(row),
    lambda inner: st.lists(items | st.lists(inner, min_size=1, max_size=3).map(braces), max_size=4).map(row),
    max_leaves=8,
)


def ends(glob: Glob, text: str, starts: frozenset[int]) -> frozenset[int]:
    """Every position at which a match may end that begins at one of `starts`."""
    found: set[int] = set()
    for way in glob.ways:
        here = starts
        for item in way:
            if isinstance(item, Glob):
                here = ends(item, text, here)
            elif isinstance(item, frozenset):
                here = frozenset(at + 1 for at in here if at < len(text) and text[at] in item)
            else:
                here = frozenset(range(min(here), len(text) + 1)) if here else here
        found |= here
    return frozenset(found)


@given(globs, st.lists(st.text(LETTERS, max_size=6), min_size=1, max_size=5))
def test_globs_match_what_the_grammar_says(glob: Glob, texts: list[str]) -> None:
    pattern = compile_glob(glob.text)
    for text in texts:
        assert bool(pattern.fullmatch(text)) == (len(text) in ends(glob, text, frozenset({0}))), text


@given(st.text(max_size=12), st.text(max_size=12))
def test_a_literal_matches_itself_alone(path: str, other: str) -> None:
    pattern = compile_glob(literal(path))
    assert pattern.fullmatch(path)
    assert bool(pattern.fullmatch(other)) == (path == other)


@given(st.text("ab*?[]{},!-\\^&~|()", max_size=14))
def test_any_text_is_a_glob_or_is_refused_by_name(text: str) -> None:
    refusal = None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            compile_glob.__wrapped__(text).fullmatch("a.b")
        except BadGlob as error:
            refusal = str(error)
    assert refusal is None or repr(text) in refusal


@pytest.mark.parametrize(
    ("pattern", "matches", "others"),
    [
        ("*", ["", "a", "a.b.c", "a\nb"], []),
        ("*.weight", ["a.weight", "a.b.weight", ".weight"], ["weight", "a.weights"]),
        ("layers.?", ["layers.0", "layers.x"], ["layers.10", "layers."]),
        ("layers.[0-2].*", ["layers.0.w", "layers.2.a.b"], ["layers.3.w", "layers.0"]),
        ("layers.[!0-2]", ["layers.3", "layers.x"], ["layers.0", "layers.10"]),
        ("[a-]", ["a", "-"], ["b", ""]),
        ("[+--]", ["+", ",", "-"], [".", "a"]),
        ("{encoder,decoder}.*", ["encoder.a", "decoder.b.c"], ["encoder", "other.a"]),
        ("{a,{b,c}d}e", ["ae", "bde", "cde"], ["be", "ade", "a,e"]),
        ("{a,}b", ["ab", "b"], ["a", ",b"]),
        ("{ab,a}*b", ["ab", "abb", "axb"], ["a", "b"]),
        ("a,b", ["a,b"], ["a", "b"]),
        ("a}b", ["a}b"], []),
        ("[]a]", ["]", "a"], ["b", ""]),
        ("[!]a]", ["b"], ["]", "a"]),
        ("[a-]", ["a", "-"], ["b"]),
        ("[^a]", ["^", "a"], ["b"]),
        (r"\*\?\[\{\,\}\\", ["*?[{,}\\"], ["a?[{,}\\"]),
        (r"{a\,b,c}", ["a,b", "c"], ["a", "b"]),
        ("ünï*", ["ünïcode"], ["unicode"]),
        ("", [""], ["a"]),
    ],
)
def test_globs_as_the_contract_describes_them(pattern: str, matches: list[str], others: list[str]) -> None:
    compiled = compile_glob(pattern)
    assert [text for text in matches + others if compiled.fullmatch(text)] == matches


@pytest.mark.parametrize(
    ("pattern", "what"),
    [
        ("a[b", r"\[ without its \]"),
        ("[]", r"\[ without its \]"),
        ("[!]", r"\[ without its \]"),
        ("a{b,c", r"{ without its }"),
        ("{a,{b}", r"{ without its }"),
        ("a\\", "ends in a backslash"),
        ("[z-a]", "z-a"),
        ("{a,b}" * 40, "too many patterns"),
    ],
)
def test_what_is_no_glob_is_refused_and_says_why(pattern: str, what: str) -> None:
    with pytest.raises(BadGlob, match=what):
        compile_glob(pattern)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "pattern", ["*a" * 30 + "b", "{*a,*aa}" * 7 + "b", "*" * 60 + "b", "{*,*}" * 9 + "b"]
)
def test_no_pattern_takes_long(pattern: str) -> None:
    assert compile_glob(pattern).fullmatch("a" * 400) is None


def test_deep_braces_are_no_trouble() -> None:
    assert compile_glob("{" * 3000 + "a" + "}" * 3000).fullmatch("a")


@given(st.text(max_size=9), st.text(min_size=1, max_size=9).filter(lambda name: "." not in name))
def test_parent_undoes_join(path: str, name: str) -> None:
    assert parent(join(path, name)) == (path, name)


def test_below_the_root_there_is_no_dot() -> None:
    assert join("", "mlp") == "mlp"
    assert parent("mlp") == ("", "mlp")
