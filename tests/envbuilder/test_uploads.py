"""Local projects that were sent along: built from what lies under their hash, and from nothing else."""

from __future__ import annotations

import hashlib
import io
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from envbuilder import BuildError, BuildSettings
from envbuilder.errors import BadRequirement
from envbuilder.key import environment_key
from envbuilder.requirements import parse_line
from tests.envbuilder.builds import Built, spec_of, write_source_package
from tests.envbuilder.conftest import MakeSettings
from tests.support.loop import run


@pytest.fixture
def sent(make_settings: MakeSettings, tmp_path: Path) -> tuple[BuildSettings, str]:
    """Settings with one uploaded project, and its requirement."""
    write_source_package(tmp_path / "made", "shopkit", module="PRICE = 7\n")
    data = (tmp_path / "made" / "shopkit-1.0.tar.gz").read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    objects = tmp_path / "objects"
    objects.mkdir()
    (objects / sha256).write_bytes(data)
    return replace(make_settings(), uploaded=objects), f"shopkit @ upload:{sha256}/shopkit.tar.gz"


def test_a_project_that_was_sent_along_is_installed(sent: tuple[BuildSettings, str]) -> None:
    settings, line = sent
    built = run(Built.make(settings, line, smoke_imports=("shopkit:PRICE",)))
    assert built.version("shopkit") == "1.0"
    assert "shopkit @ your own files" in built.text
    assert not list(built.environment.path.parent.glob("work-*"))


def test_what_is_not_there_is_said(sent: tuple[BuildSettings, str]) -> None:
    settings, line = sent
    for file in settings.uploaded.iterdir():
        file.unlink()
    with pytest.raises(BuildError, match=r"sent along for shopkit is not in .* Next: deploy again"):
        run(Built.make(settings, line))


def test_the_content_is_part_of_the_key() -> None:
    keys = {environment_key(spec_of(f"shop @ upload:{digit * 64}/shop.tar.gz")) for digit in "ab"}
    assert len(keys) == 2


@pytest.mark.parametrize("url", ["upload:x/y.whl", f"upload:{'a' * 64}/../../etc/passwd", f"upload:{'a' * 64}/x.py"])
def test_nothing_else_is_an_upload(url: str) -> None:
    with pytest.raises(BadRequirement, match="no file that was sent along"):
        parse_line(f"shop @ {url}")


@pytest.mark.parametrize("way", ["..", "absolute", "link"])
def test_a_hostile_archive_reaches_nothing(make_settings: MakeSettings, tmp_path: Path, way: str) -> None:
    """What is sent along is a tenant's: an archive that leads out of its folder must not write beside it."""
    outside = tmp_path / "outside"
    outside.mkdir()
    ways: dict[str, list[tuple[str, str | None]]] = {
        "..": [("shop-0/" + "../" * 20 + f"{outside}/evil", None)],
        "absolute": [(f"{outside}/evil", None)],
        "link": [("shop-0/way", str(outside)), ("shop-0/way/evil", None)],
    }
    with tarfile.open(tmp_path / "hostile.tar.gz", "w:gz") as archive:
        for name, link in ways[way]:
            entry = tarfile.TarInfo(name)
            if link is not None:
                entry.type, entry.linkname = tarfile.SYMTYPE, link
            else:
                entry.size = 4
            archive.addfile(entry, None if link else io.BytesIO(b"evil"))
    data = (tmp_path / "hostile.tar.gz").read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    (tmp_path / "objects").mkdir()
    (tmp_path / "objects" / sha256).write_bytes(data)
    settings = replace(make_settings(), uploaded=tmp_path / "objects")
    with pytest.raises(BuildError):
        run(Built.make(settings, f"shop @ upload:{sha256}/shop.tar.gz"))
    assert list(outside.iterdir()) == []
