"""docs/faults.md names every fault, and only tests that exist."""

from __future__ import annotations

import ast
import re

import pytest

from tests.support.platform import ROOT

ROWS = [line for line in (ROOT / "docs" / "faults.md").read_text().splitlines() if re.match(r"\| F\d\d ", line)]


def test_every_fault_has_its_row_in_order() -> None:
    assert [row[2:5] for row in ROWS] == [f"F{n:02}" for n in range(1, 46)]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[2:5])
def test_a_row_names_tests_that_exist_or_says_that_there_is_none(row: str) -> None:
    _, happens, tests, result = (cell.strip() for cell in row.strip("|").split("|"))
    assert happens
    assert result
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", tests)
    assert named or tests.startswith("not covered"), "a row without a test says so, and why"
    for file, name in named:
        tree = ast.parse((ROOT / "tests" / file).read_text())
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
