"""The list of guards keeps up with the scripts, and the guards that matter most are not missed by the tests."""

from __future__ import annotations

import pytest

from scheduler.store.scripts import SCRIPTS
from tests.mutations.__main__ import check
from tests.mutations.guards import _VITAL, GUARDS, LUA, VITAL, Guard


@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: f"{guard.script}: {guard.what}")
def test_a_guard_stands_where_the_list_says(guard: Guard) -> None:
    text = (LUA / guard.path).read_text()
    assert guard.taken_out_of(text) != text


def test_every_verb_that_moves_a_request_has_guards() -> None:
    assert {name for name, script in SCRIPTS.items() if script.moves} <= {guard.script for guard in GUARDS}


@pytest.mark.timeout(400)
def test_without_its_most_important_guards_no_script_passes() -> None:
    """Eighteen of the mutants; all of them take minutes (``make mutations``)."""
    assert len(VITAL) == len(_VITAL)
    fates = check(list(VITAL), jobs=2, unharmed=False)
    assert [fate.row() for fate in fates if not fate.killer] == []
