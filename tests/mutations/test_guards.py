"""The list of guards keeps up with the scripts: ``make mutations`` would only say so minutes later."""

from __future__ import annotations

import pytest

from scheduler.store.scripts import SCRIPTS
from tests.mutations.guards import GUARDS, LUA, Guard


@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: f"{guard.script}: {guard.what}")
def test_a_guard_stands_where_the_list_says(guard: Guard) -> None:
    text = (LUA / guard.path).read_text()
    assert guard.taken_out_of(text) != text


def test_every_verb_that_moves_a_request_has_guards() -> None:
    assert {name for name, script in SCRIPTS.items() if script.moves} <= {guard.script for guard in GUARDS}
