"""Which files travel with an app, where they lie in the bundle, and what is refused."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from fal._bundle import FILE_LIMIT, collect
from fal._problem import Problem

Tree = dict[str, str]


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project's folder, and the working folder."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "pyproject.toml").write_text("")
    monkeypatch.chdir(folder)
    return folder


def grow(folder: Path, tree: Tree) -> None:
    for name, text in tree.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def paths(folder: Path, app: str = "app.py", **options: object) -> list[str]:
    return [file.path for file in collect(folder / app, **options).files]  # type: ignore[arg-type]


def test_imports_are_followed_wherever_they_stand(project: Path) -> None:
    grow(
        project,
        {
            "app.py": "import one\nclass A:\n    def setup(self):\n        from two import thing\n",
            "one.py": "import importlib\nimportlib.import_module('three')\n",
            "two.py": "",
            "three.py": "try:\n    import four\nexcept ImportError:\n    four = None\n",
            "four.py": "",
            "unused.py": "",
        },
    )
    assert paths(project) == ["app.py", "four.py", "one.py", "three.py", "two.py"]


def test_packages_bring_their_init_files_and_relative_imports(project: Path) -> None:
    grow(
        project,
        {
            "app.py": "from kit.tools.saw import cut\nfrom kit import colours\n",
            "kit/__init__.py": "",
            "kit/colours.py": "",
            "kit/tools/__init__.py": "from . import blade\n",
            "kit/tools/saw.py": "from ..shared import x\nfrom .. import more\n",
            "kit/tools/blade.py": "",
            "kit/shared.py": "",
            "kit/more/__init__.py": "",
            "kit/unused.py": "",
        },
    )
    assert paths(project) == [
        "app.py",
        "kit/__init__.py",
        "kit/colours.py",
        "kit/more/__init__.py",
        "kit/shared.py",
        "kit/tools/__init__.py",
        "kit/tools/blade.py",
        "kit/tools/saw.py",
    ]


def test_a_namespace_package_is_followed_but_a_folder_of_data_hides_nothing(project: Path) -> None:
    """A folder `torch/` with weights beside the app must not be taken for the package torch."""
    grow(
        project,
        {"app.py": "import space.deep.part\nimport torch\n", "space/deep/part.py": "", "torch/weights.bin": "w"},
    )
    bundle = collect(project / "app.py")
    assert [file.path for file in bundle.files] == ["app.py", "space/deep/part.py"]
    assert bundle.third_party == ("torch",)


def test_the_projects_modules_are_found_from_a_folder_below(project: Path) -> None:
    grow(project, {"apps/demo/app.py": "import beside\nimport shared.util\n", "apps/demo/beside.py": ""})
    grow(project, {"shared/__init__.py": "", "shared/util.py": "", "src/lib/__init__.py": ""})
    bundle = collect(project / "apps/demo/app.py")
    assert bundle.entry_file == "apps/demo/app.py"
    assert [file.path for file in bundle.files] == [
        "apps/demo/app.py",
        "apps/demo/beside.py",
        "shared/__init__.py",
        "shared/util.py",
    ]


def test_modules_of_a_src_folder_move_to_the_top(project: Path) -> None:
    grow(project, {"apps/app.py": "import lib.part\n", "src/lib/__init__.py": "", "src/lib/part.py": ""})
    assert paths(project, "apps/app.py") == ["app.py", "lib/__init__.py", "lib/part.py"]


def test_what_is_tried_after_the_install(project: Path) -> None:
    """Only what the app cannot do without: an optional or never-called import must not fail a build."""
    grow(
        project,
        {
            "app.py": (
                "from __future__ import annotations\n"
                "import json, fal, numpy.linalg\n"
                "from typing import TYPE_CHECKING\n"
                "if TYPE_CHECKING:\n    import typed\n"
                "try:\n    import xformers\nexcept ImportError:\n    pass\n"
                "import helper\n"
                "class A:\n    def setup(self):\n        from diffusers import Pipe\n"
                "if __name__ == '__main__':\n    import click\n"
            ),
            "helper.py": "import PIL.Image\ndef plot():\n    import matplotlib\n",
        },
    )
    bundle = collect(project / "app.py")
    assert bundle.third_party == ("PIL.Image", "diffusers:Pipe", "numpy.linalg")
    assert bundle.perhaps == ("matplotlib",)


def test_local_python_modules_travel_whole(project: Path) -> None:
    grow(project, {"app.py": "", "plugins/__init__.py": "", "plugins/a.py": "", "plugins/data.json": "{}"})
    grow(project, {"plugins/__pycache__/a.pyc": ""})
    assert paths(project, local_python_modules=["plugins"]) == [
        "app.py",
        "plugins/__init__.py",
        "plugins/a.py",
        "plugins/data.json",
    ]


def test_local_python_modules_from_elsewhere_lie_at_the_top(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grow(tmp_path, {"elsewhere/farlib/__init__.py": "from farlib import part\n", "elsewhere/farlib/part.py": ""})
    grow(project, {"app.py": ""})
    monkeypatch.syspath_prepend(str(tmp_path / "elsewhere"))
    assert paths(project, local_python_modules=["farlib"]) == ["app.py", "farlib/__init__.py", "farlib/part.py"]


def test_app_files_with_ignored_ones_and_hashes(project: Path) -> None:
    grow(project, {"app.py": "x = 1\n", "assets/a.txt": "A", "assets/.git/config": "", "assets/skip.log": "", "b": "B"})
    (project / "assets/run.sh").write_text("echo")
    (project / "assets/run.sh").chmod(0o755)
    bundle = collect(project / "app.py", app_files=["assets", "b", "app.py"])
    assert [file.path for file in bundle.files] == ["app.py", "assets/a.txt", "assets/run.sh", "assets/skip.log", "b"]
    assert {file.path for file in bundle.files if file.executable} == {"assets/run.sh"}
    first = bundle.files[1]
    assert first.sha256 == hashlib.sha256(b"A").hexdigest()
    assert bundle.paths[first.sha256].read_text() == "A"
    assert "assets/skip.log" not in paths(project, app_files=["assets"], app_files_ignore=[r"\.log$"])


def test_app_files_context_dir_above_the_app_becomes_the_top(project: Path) -> None:
    grow(project, {"apps/app.py": "", "assets/a.txt": ""})
    found = collect(project / "apps/app.py", app_files=["assets"], app_files_context_dir=project)
    assert found.entry_file == "apps/app.py"
    assert [file.path for file in found.files] == ["apps/app.py", "assets/a.txt"]


def test_app_files_context_dir_below_the_app_is_the_top_of_its_files(project: Path) -> None:
    """An app that named ``texts`` found it at ``files/texts``: not where it is on fal."""
    grow(project, {"app.py": "", "files/texts/a.txt": ""})
    found = collect(project / "app.py", app_files=["texts"], app_files_context_dir=project / "files")
    assert [file.path for file in found.files] == ["app.py", "texts/a.txt"]


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (["../secret"], "lies outside"),
        (["gone"], "does not exist"),
        (["leak"], "is a link that leaves"),
        (["folder"], "is a link that leaves"),
    ],
)
def test_app_files_that_are_refused(project: Path, tmp_path: Path, files: list[str], says: str) -> None:
    grow(tmp_path, {"secret": "", "outside/x": ""})
    grow(project, {"app.py": "", "folder/y": ""})
    (project / "leak").symlink_to(tmp_path / "secret")
    (project / "folder/out").symlink_to(tmp_path / "outside")
    with pytest.raises(Problem, match=says):
        collect(project / "app.py", app_files=files)


def test_links_inside_the_folder_are_files(project: Path) -> None:
    grow(project, {"app.py": "", "data/real": "r", "data/sub/x": ""})
    (project / "data/link").symlink_to("real")
    (project / "data/sub/loop").symlink_to("..")
    assert paths(project, app_files=["data"]) == ["app.py", "data/link", "data/real", "data/sub/x"]


def test_the_size_limit_is_stated(project: Path) -> None:
    grow(project, {"app.py": ""})
    with (project / "huge.bin").open("wb") as stream:
        stream.truncate(FILE_LIMIT + 1)  # sparse
    with pytest.raises(Problem, match="limit is 1 GiB a file"):
        collect(project / "app.py", app_files=["huge.bin"])


def test_special_files_are_refused(project: Path) -> None:
    grow(project, {"app.py": ""})
    os.mkfifo(project / "pipe")
    with pytest.raises(Problem, match="not a plain file"):
        collect(project / "app.py", app_files=["pipe"])


def test_a_wrong_ignore_pattern_is_named(project: Path) -> None:
    grow(project, {"app.py": "", "a": ""})
    with pytest.raises(Problem, match=r"holds '\(', which is not a regular expression"):
        collect(project / "app.py", app_files=["a"], app_files_ignore=["("])
