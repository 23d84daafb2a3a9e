"""The script inside an environment imports names as the app's own ``from`` statements would."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from envbuilder.smoke_script import load


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package whose submodules are not imported by its ``__init__``."""
    folder = tmp_path / "lazy_package"
    folder.mkdir()
    (folder / "__init__.py").write_text("present = 1\n")
    (folder / "part.py").write_text("")
    (folder / "broken.py").write_text("import not_installed_anywhere\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "lazy_package"
    for name in [name for name in sys.modules if name.partition(".")[0] == "lazy_package"]:
        del sys.modules[name]


def test_a_submodule_nobody_imported_yet(package: str) -> None:
    """`from PIL import Image` failed a build whose environment already existed: only the app's new names were tried
    then, and nothing before them had imported ``PIL.Image``."""
    load(f"{package}:part")
    load(f"{package}:present")


def test_what_is_missing_is_named(package: str) -> None:
    with pytest.raises(ImportError, match="cannot import name 'absent' from 'lazy_package'"):
        load(f"{package}:absent")
    with pytest.raises(ModuleNotFoundError, match="not_installed_anywhere"):
        load(f"{package}:broken")
