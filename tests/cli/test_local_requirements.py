"""Requirements that are paths: what is sent along for them, and what is refused."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest
from fal import _local_requirements
from fal._loading import load
from fal._local_requirements import pack
from fal._problem import Problem

from envbuilder.requirements import parse_line

PYPROJECT = '[project]\nname = "My.Shop-Kit"\nversion = "3"\n'


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "shop"
    for name, text in {
        "pyproject.toml": PYPROJECT,
        "src/my_shop_kit/__init__.py": "PRICE = 1\n",
        ".git/config": "x",
        ".venv/lib/big.py": "x",
        "dist/old.whl": "x",
        "src/my_shop_kit/__pycache__/a.pyc": "x",
        ".env": "TOKEN=secret",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_a_project_is_sent_as_the_files_that_make_it(project: Path, tmp_path: Path) -> None:
    layers, archives = pack([["torch==2.3.0", "./shop[web] ; python_version > '3'"], ["./shop"]], tmp_path)
    ((sha256, archive),) = archives.items()
    url = f"upload:{sha256}/my_shop_kit.tar.gz"
    assert layers == (("torch==2.3.0", f"my_shop_kit[web] @ {url} ; python_version > '3'"), (f"my_shop_kit @ {url}",))
    with tarfile.open(archive) as content:
        names = content.getnames()
        assert {(entry.uid, entry.mtime) for entry in content} == {(0, 0)}
    assert sorted(names) == ["my_shop_kit-0/pyproject.toml", "my_shop_kit-0/src/my_shop_kit/__init__.py"]
    assert all(parse_line(line).uploaded == (sha256, "my_shop_kit.tar.gz") for layer in layers for line in layer[-1:])


def test_the_same_files_are_the_same_bytes_and_others_are_others(project: Path, tmp_path: Path) -> None:
    """An environment is named by its inputs: time stamps in the archive would build a new one at each deploy."""
    first = pack([["./shop"]], tmp_path)[0]
    for path in project.rglob("*"):
        os.utime(path, (1, 1))
    assert pack([["./shop"]], tmp_path)[0] == first
    (project / "src/my_shop_kit/__init__.py").write_text("PRICE = 2\n")
    assert pack([["./shop"]], tmp_path)[0] != first


def test_a_wheel_keeps_its_name(tmp_path: Path) -> None:
    wheel = tmp_path / "kit-1.0-py3-none-any.whl"
    wheel.write_bytes(b"wheel")
    ((line,),), archives = pack([[f"{wheel}"]], tmp_path)
    assert line == f"kit @ upload:{next(iter(archives))}/kit-1.0-py3-none-any.whl"
    assert list(archives.values()) == [wheel]


@pytest.mark.parametrize(
    ("files", "name"),
    [
        ({"pyproject.toml": '[tool.poetry]\nname = "poem"\n'}, "poem"),
        ({"setup.cfg": "[metadata]\nname = old-one\n"}, "old_one"),
        ({"setup.py": "from setuptools import setup\nsetup(name='older')\n"}, "older"),
    ],
)
def test_where_a_projects_name_stands(tmp_path: Path, files: dict[str, str], name: str) -> None:
    for file, text in files.items():
        (tmp_path / file).write_text(text)
    assert pack([["."]], tmp_path)[0][0][0].startswith(f"{name} @ upload:")


def test_what_is_refused(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    for line, says in (
        ("./nowhere", "there is nothing"),
        ("./empty", "holds no project"),
        ("./shop/.env", "it is another kind of file"),
    ):
        with pytest.raises(Problem, match=says):
            pack([[line]], tmp_path)
    (project / "leak").symlink_to("/etc/hostname")
    with pytest.raises(Problem, match="a link that leaves"):
        pack([["./shop"]], tmp_path)
    (project / "leak").unlink()
    monkeypatch.setattr(_local_requirements, "MOST_BYTES", 10)
    with pytest.raises(Problem, match="MiB of files"):
        pack([["./shop"]], tmp_path)
    (project / "pyproject.toml").write_text("[build-system]\nrequires = []\n")
    with pytest.raises(Problem, match="no name that can be read"):
        pack([["./shop"]], tmp_path)


@pytest.mark.usefixtures("fresh_modules")
def test_paths_count_from_the_app_or_from_its_context_folder(project: Path, tmp_path: Path) -> None:
    app = "import fal\nclass Till(fal.App):\n    requirements = ['{path}']\n{more}"
    app += "    @fal.endpoint('/')\n    def run(self) -> int:\n        return 1\n"
    (project / "till.py").write_text(app.format(path=".", more=""))
    loaded = load("shop/till.py", cwd=tmp_path)
    assert set(loaded.archives) <= set(loaded.uploads)
    assert "upload:" in loaded.spec.environment.requirements[0][0]
    (tmp_path / "apps").mkdir()
    (tmp_path / "apps" / "cash.py").write_text(app.format(path="./shop", more="    requirements_context_dir = '..'\n"))
    assert len(load("apps/cash.py", cwd=tmp_path).archives) == 1
