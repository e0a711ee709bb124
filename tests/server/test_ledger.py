"""The ledger by itself: order, bounds, and which operations can still be undone."""

from __future__ import annotations

import pytest
import torch

from modscope_server.errors import BadRequest, UnknownOperation
from modscope_server.inspection.memento import Memento
from modscope_server.runtime.entries import Entry
from modscope_server.runtime.ledger import Ledger

TENSORS = {name: torch.zeros(256) for name in "abc"}
SIZE = 1024


def entered(ledger: Ledger, *names: str, undoes: Entry | None = None, model: str = "m") -> Entry:
    """An operation that touched the tensors of these names."""
    memento = Memento()
    for name in names or (() if undoes is None else undoes.paths):
        memento.keep_tensor(name, TENSORS[name])
    memento.settle()
    entry = Entry("undo" if undoes else "write", model, "operator", 0, undoes=undoes)
    entry.paths, entry.memento, entry.keys = tuple(names), memento, memento.keys
    if undoes is not None:
        entry.paths = undoes.paths
    entry.notes = ledger.add(entry)
    return entry


def undone(ledger: Ledger, entry: Entry) -> Entry:
    assert reason(ledger, entry) == ""
    return entered(ledger, undoes=entry)


def reason(ledger: Ledger, entry: Entry) -> str:
    return ledger.not_undoable(entry)[0]


def make(operations: int = 100, undo_bytes: int = 100 * SIZE) -> Ledger:
    return Ledger(operations, undo_bytes)


def test_ids_count_up_and_pages_keep_the_order() -> None:
    ledger = make()
    made = [entered(ledger, "a", model="m" if number % 2 else "other") for number in range(10)]
    assert [entry.id for entry in made] == [f"op-{number}" for number in range(1, 11)]
    ids, token = [], ""
    while True:
        page = ledger.page("m", 2, token)
        assert len(page.entries) <= 2
        ids += [entry.id for entry in page.entries]
        token = page.following
        if not token:
            break
    assert ids == ["op-2", "op-4", "op-6", "op-8", "op-10"]


@pytest.mark.parametrize("token", ["x", "-1", "1" * 20, "²"])
def test_a_page_token_that_is_none(token: str) -> None:
    with pytest.raises(BadRequest):
        make().page("m", 2, token)


def test_an_operation_on_another_model_is_unknown() -> None:
    ledger = make()
    entry = entered(ledger, "a")
    assert ledger.get("m", entry.id) is entry
    for model, id in (("other", entry.id), ("m", "op-2"), ("m", "")):
        with pytest.raises(UnknownOperation):
            ledger.get(model, id)


def test_a_later_operation_on_the_same_overtakes_until_it_is_undone() -> None:
    ledger = make()
    first, second = entered(ledger, "a", "b"), entered(ledger, "b", "c")
    assert reason(ledger, first) == "op-2 (write) has changed the same since"
    assert reason(ledger, second) == ""
    undone(ledger, second)
    assert reason(ledger, first) == ""


def test_one_on_something_else_does_not() -> None:
    ledger = make()
    first, second = entered(ledger, "a"), entered(ledger, "b")
    assert (reason(ledger, first), reason(ledger, second)) == ("", "")


def test_an_undo_can_be_undone_and_that_again() -> None:
    ledger = make()
    write = entered(ledger, "a")
    undo = undone(ledger, write)
    assert write.undone_by is undo
    assert reason(ledger, write) == "op-2 has undone it already"
    redo = undone(ledger, undo)
    assert [write.undone_by, undo.undone_by] == [None, redo]
    assert reason(ledger, write) == ""
    again = undone(ledger, redo)
    assert [write.undone_by, undo.undone_by, redo.undone_by] == [undo, None, again]
    assert reason(ledger, write) == "op-2 has undone it already"
    last = again
    for _ in range(3000):
        last = undone(ledger, last)
    assert write.undone_by is undo


def test_an_undo_is_overtaken_by_what_changes_the_same_after_it() -> None:
    ledger = make()
    write = entered(ledger, "a")
    undo = undone(ledger, write)
    later = entered(ledger, "a")
    assert reason(ledger, undo) == "op-3 (write) has changed the same since"
    undone(ledger, later)
    assert reason(ledger, undo) == ""


def test_redo_is_the_mirror_of_undo() -> None:
    ledger = make()
    first, second = entered(ledger, "a"), entered(ledger, "a")
    undo_second = undone(ledger, second)
    undo_first = undone(ledger, first)
    assert reason(ledger, undo_second) == f"{undo_first.id} (undo) has changed the same since"
    redo_first = undone(ledger, undo_first)
    assert reason(ledger, undo_second) == ""
    undone(ledger, undo_second)
    assert reason(ledger, redo_first) == "op-2 (write) has changed the same since"
    assert reason(ledger, first) == "op-2 (write) has changed the same since"


def test_the_oldest_copies_go_and_their_entries_say_so() -> None:
    ledger = make(undo_bytes=2 * SIZE)
    first, second, third = (entered(ledger, name) for name in "abc")
    assert reason(ledger, first) == f"its copies were let go: limits.undo_bytes keeps {2 * SIZE:,} bytes"
    assert (reason(ledger, second), reason(ledger, third)) == ("", "")
    assert third.notes == ("cannot be undone any more, for limits.undo_bytes: op-1",)
    assert first.memento is None


def test_one_that_is_too_large_costs_no_other() -> None:
    ledger = make(undo_bytes=SIZE)
    small = entered(ledger, "a")
    large = entered(ledger, "b", "c")
    assert reason(ledger, small) == ""
    assert (
        reason(ledger, large)
        == f"it needs {2 * SIZE:,} bytes of copies, and limits.undo_bytes keeps {SIZE:,}"
    )
    assert large.notes == (f"cannot be undone: {large.lost}",)


def test_one_whose_copies_are_gone_still_overtakes() -> None:
    ledger = make(undo_bytes=SIZE)
    small = entered(ledger, "a")
    large = entered(ledger, "a", "b")
    assert reason(ledger, small) == f"{large.id} (write) has changed the same since"


def test_the_oldest_entries_are_forgotten_and_counted() -> None:
    ledger = make(operations=2)
    for name in "abc":
        entered(ledger, name)
    page = ledger.page("m", 10)
    assert ([entry.id for entry in page.entries], page.forgotten) == (["op-2", "op-3"], 1)
    with pytest.raises(UnknownOperation, match="1 older ones are forgotten"):
        ledger.get("m", "op-1")
    for _ in range(50):
        entered(ledger, "a", "b")
    assert ledger.page("m", 10).forgotten == 51


def test_what_failed_changed_nothing_and_overtakes_nothing() -> None:
    ledger = make()
    first = entered(ledger, "a")
    failed = Entry("write", "m", "operator", 0, outcome="failed")
    ledger.add(failed)
    assert reason(ledger, failed) == "it changed nothing"
    assert reason(ledger, first) == ""
