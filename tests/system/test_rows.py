"""Every row of `rows.py` has a test, every such test exists, and no setting or command is without a row."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import click
import pytest
from fal import toolkit
from fal._settings import KNOWN
from fal.cli import cli

from tests.support.platform import ROOT
from tests.system.rows import CLASS_SETTINGS, COMMANDS, TABLES, TOOLKIT_NAMES

HERE = Path(__file__).parent
ROWS = [(table, row, tests) for table, rows in TABLES.items() for row, tests in rows.items()]
#: Settings and names of this platform's own; fal has none like them.
OURS = {
    *("app_priority", "cancel_grace_seconds", "constraints", "exclude_newer", "force_env_build", "gpu_memory"),
    *("recycle_above_memory", "recycle_after_requests", "recycle_after_seconds"),
}


@cache
def functions_of(file: Path) -> frozenset[str]:
    """The tests of a file."""
    found = ast.walk(ast.parse(file.read_text()))
    return frozenset(node.name for node in found if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


@pytest.mark.parametrize(("table", "row", "tests"), ROWS, ids=[f"{table}: {row}" for table, row, _ in ROWS])
def test_a_row_names_tests_that_there_are(table: str, row: str, tests: tuple[str, ...]) -> None:
    assert tests, f"{row} of {table} has no test"
    for test in tests:
        file, _, function = test.partition("::")
        path = ROOT / file if "/" in file else HERE / file
        assert path.is_file(), f"{row}: there is no {path}"
        assert function in functions_of(path), f"{row}: {path.name} has no {function}"


def test_every_setting_has_a_row() -> None:
    named = {word.strip(" =") for row in CLASS_SETTINGS for word in row.split(",")}
    assert not KNOWN - named - OURS, "say in rows.py which test drives it"


def test_every_command_has_a_row() -> None:
    rows = " ".join(COMMANDS)
    context = click.Context(cli)
    # Beside fal's own: what is given up can only be seen here, and `fal logs APP` is every runner's log at once.
    for name in {*cli.list_commands(context)} - {"logs"}:
        assert f"fal {name}" in rows or name in rows, f"say in rows.py which test drives `fal {name}`"


def test_every_name_of_the_toolkit_has_a_row_or_belongs_to_one() -> None:
    named = {word.strip().rpartition(".")[2] for row in TOOLKIT_NAMES for word in row.split(",")}
    parts = {
        *("Field", "FileData", "FileRepository", "PendingFile", "to_xfal", "ImageSizeConstraints"),
        *("ImageValidationConfig", "ImageValidationOptions"),
        *("DownloadError", "FalTookitException", "FileUploadException", "KVStoreException"),
    }
    assert not set(toolkit.__all__) - named - parts
