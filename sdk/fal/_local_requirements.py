"""Requirements that are paths of this machine: a project's folder, a wheel. They are sent along and named by content.

``.[extra]`` becomes ``shop[extra] @ upload:<sha256>/shop.tar.gz``, which the builder finds among the uploaded files.
The archive is made so that the same files make the same bytes: an unchanged project builds no new environment.
"""

from __future__ import annotations

import atexit
import configparser
import gzip
import hashlib
import re
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

from fal._bundle import walk
from fal._problem import Problem

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

#: What no build of a project needs, as regexes searched in relative posix paths.
_IGNORE = (
    *(r"\.pyc$", r"(^|/)__pycache__/", r"(^|/)\.git/", r"\.DS_Store$", r"(^|/)\.?venv/", r"(^|/)node_modules/"),
    *(r"^dist/", r"^build/", r"\.egg-info/", r"(^|/)\.(mypy|ruff|pytest)_cache/", r"(^|/)\.tox/", r"(^|/)\.env$"),
)
#: A project with more than this holds data that does not belong into a package.
MOST_BYTES = 256 * 1024 * 1024
_PATH = re.compile(r"(?P<path>(?:\.|/|~)[^\[\];]*?)\s*(?P<extras>\[[^\]]*\])?\s*(?P<marker>;.*)?")
_PROJECT_FILES = ("pyproject.toml", "setup.py", "setup.cfg")
_DISTRIBUTIONS = (".whl", ".tar.gz", ".zip")


def is_path(line: str) -> bool:
    """Whether a requirement is a path of this machine."""
    return line.startswith((".", "/", "~")) and _PATH.fullmatch(line) is not None


def pack(layers: Sequence[Sequence[str]], base: Path) -> tuple[tuple[tuple[str, ...], ...], dict[str, Path]]:
    """The layers with paths replaced, and what is to be sent: SHA-256 to file.

    Args:
        base: folder that relative paths count from.

    Raises:
        Problem: there is nothing that can be installed at a path.
    """
    archives: dict[str, Path] = {}
    packed = tuple(tuple(_packed(line.strip(), base, archives) for line in layer) for layer in layers)
    return packed, archives


def _packed(line: str, base: Path, archives: dict[str, Path]) -> str:
    match = _PATH.fullmatch(line) if is_path(line) else None
    if match is None:
        return line
    path = (base / Path(match["path"]).expanduser()).resolve()
    if path.is_dir():
        name = _project_name(path, line)
        file, filename = _archive(path, name), f"{name}.tar.gz"  # a version in it would have to be the right one
    elif path.is_file() and path.name.endswith(_DISTRIBUTIONS):
        name, file, filename = path.name.split("-")[0], path, path.name
    else:
        raise Problem(
            f"requirements holds {line!r}, and {path} is no project's folder, wheel or source archive.",
            why="there is nothing." if not path.exists() else "it is another kind of file.",
            next_step=f"paths count from {base}; requirements_context_dir names another folder.",
        )
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    archives[sha256] = file
    return (
        f"{name}{match['extras'] or ''} @ upload:{sha256}/{filename}{' ' + match['marker'] if match['marker'] else ''}"
    )


def _project_name(folder: Path, line: str) -> str:
    if not any((folder / name).is_file() for name in _PROJECT_FILES):
        raise Problem(
            f"requirements holds {line!r}, and {folder} holds no project.",
            why=f"there is none of {', '.join(_PROJECT_FILES)}.",
            next_step="name a project's folder; a module beside the app travels by being imported.",
        )
    name = _from_pyproject(folder / "pyproject.toml") or _from_setup(folder)
    if name is None or not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", name):
        raise Problem(
            f"The project in {folder} has no name that can be read without running it.",
            next_step='write one into its pyproject.toml: [project] with name = "…".',
        )
    return re.sub(r"[-_.]+", "_", name).lower()


def _from_pyproject(path: Path) -> str | None:
    if not path.is_file():
        return None
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise Problem(f"{path} cannot be read.", why=str(error)) from error
    name = content.get("project", {}).get("name") or content.get("tool", {}).get("poetry", {}).get("name")
    return str(name) if name else None


def _from_setup(folder: Path) -> str | None:
    config = configparser.ConfigParser(interpolation=None)
    try:
        config.read(folder / "setup.cfg", encoding="utf-8")
        if name := config.get("metadata", "name", fallback=None):
            return name
        found = re.search(r"\bname\s*=\s*[\"']([^\"']+)[\"']", (folder / "setup.py").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, configparser.Error):
        return None
    return found[1] if found else None


def _archive(folder: Path, name: str) -> Path:
    """The project's files as a source distribution would hold them; the same bytes for the same files."""
    place = Path(tempfile.mkdtemp(prefix="fal-"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    target = place / f"{name}.tar.gz"
    total = 0
    with (
        target.open("wb") as file,
        gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for path in walk(folder, folder, _IGNORE):
            real = path.resolve()
            if not real.is_relative_to(folder):
                raise Problem(f"{path} is a link that leaves {folder}.", next_step="copy the file into the project.")
            if not real.is_file():
                continue
            total += real.stat().st_size
            if total > MOST_BYTES:
                raise Problem(
                    f"The project in {folder} has more than {MOST_BYTES >> 20} MiB of files.",
                    next_step="put its data elsewhere, as into /data (`fal files upload`) or app_files.",
                )
            entry = tarfile.TarInfo(f"{name}-0/{path.relative_to(folder).as_posix()}")
            entry.size, entry.mode = real.stat().st_size, 0o755 if real.stat().st_mode & 0o111 else 0o644
            with real.open("rb") as content:
                archive.addfile(entry, content)
    return target
