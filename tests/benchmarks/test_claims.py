"""The claims about watches run, at sizes that say nothing of their numbers; no time is judged here.

Each asserts by itself that what it measures has taken place: that events came, and none is unaccounted for.
"""

from __future__ import annotations

import math

import pytest

from benchmarks.claims import CLAIMS, chosen, run


@pytest.mark.parametrize("name", [name for name in CLAIMS if name.startswith("watch-")])
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_claim_gives_its_rows(name: str) -> None:
    rows = run(name, quick=True)
    assert rows and all(row.detail for row in rows)
    assert all(row.verdict == "absent" for row in rows if math.isnan(row.value))
    assert any(not math.isnan(row.value) for row in rows)


def test_names_are_chosen_one_by_one_or_by_their_first_part() -> None:
    assert chosen([]) == list(CLAIMS)
    assert chosen(["idle", "bulk", "idle"]) == ["idle", "bulk"]
    assert chosen(["watch-tenth", "watch"])[0] == "watch-tenth"
    assert sorted(chosen(["watch"])) == sorted(name for name in CLAIMS if name.startswith("watch-"))


@pytest.mark.parametrize("name", ["wat", "watch-", "nothing", ""])
def test_name_that_no_claim_has_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="choose from"):
        chosen([name])
