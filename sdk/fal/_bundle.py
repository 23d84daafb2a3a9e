"""The files of a revision: the app's file, the local modules that it imports, and its ``app_files``.

Owns which files travel, where they lie in the bundle, and their hashes. Nothing is ever pickled. Leaves finding
imports to ``fal._imports`` and sending to ``fal._server``.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from fal._imports import LocalImports, Source, entry_source
from fal._problem import Problem
from fal._spec import BundleFile

#: Largest single file, in bytes.
FILE_LIMIT = 1 << 30
#: Regexes searched in relative posix paths; what ``app_files_ignore`` replaces.
DEFAULT_IGNORE = (r"\.pyc$", r"__pycache__/", r"\.git/", r"\.DS_Store$")
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Bundle:
    """What travels: ``files`` for the server, ``paths`` from SHA-256 to a local file with those bytes.

    ``entry_file`` is the app's file inside the bundle; ``third_party`` what it cannot do without, as ``module`` or
    ``module:name``; ``perhaps`` those that only functions of helper modules import.
    """

    entry_file: str
    files: tuple[BundleFile, ...]
    paths: dict[str, Path] = field(repr=False)
    third_party: tuple[str, ...]
    perhaps: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


def search_roots(app_file: Path, start: Path | None = None) -> list[Path]:
    """Folders in which an app's local modules are looked for: its own, the working folder and the project's.

    The last two only when the app lies below them; a project's ``src`` counts too.
    """
    folder = app_file.parent
    start = (start or Path.cwd()).resolve()
    roots = [folder, entry_source(app_file).root]
    if folder.is_relative_to(start):
        roots.append(start)
    if (project := project_root(folder)) is not None:
        roots.append(project)
        if (project / "src").is_dir():
            roots.append(project / "src")
    return list(dict.fromkeys(roots))


def project_root(folder: Path) -> Path | None:
    """The nearest folder at or above ``folder`` that holds a project (pyproject.toml, setup.py or .git)."""
    for candidate in (folder, *folder.parents):
        if any((candidate / marker).exists() for marker in ("pyproject.toml", "setup.py", ".git")):
            return candidate
    return None


def collect(
    app_file: Path,
    *,
    local_python_modules: Sequence[str] = (),
    app_files: Sequence[str] = (),
    app_files_ignore: Sequence[str] | None = None,
    app_files_context_dir: Path | None = None,
    roots: Sequence[Path] | None = None,
) -> Bundle:
    """Find, place and hash the files of an app.

    Args:
        app_file: absolute path of the file that holds the app's class.
        local_python_modules: modules shipped whole although nothing imports them by name.
        app_files: files and folders relative to ``app_files_context_dir`` (default: the app's folder).
        app_files_ignore: regexes searched in their relative posix paths; None means DEFAULT_IGNORE.
        roots: folders to look for local modules in; None means ``search_roots(app_file)``.

    Raises:
        Problem: a file is missing, too large, special, leads out of its folder, or two want one place.
    """
    app_file = app_file.resolve()
    imports = LocalImports(roots if roots is not None else search_roots(app_file))
    imports.follow(entry_source(app_file))
    whole = [path for name in local_python_modules for path in _whole_module(name, imports)]
    context = (app_files_context_dir or app_file.parent).resolve()
    extra = list(_app_files(context, app_files, DEFAULT_IGNORE if app_files_ignore is None else app_files_ignore))
    base = _base(app_file, [*imports.sources.values(), *whole], context if extra else None)
    layout = _Layout(base)
    layout.add(app_file, app_file.parent)
    for source in [*imports.sources.values(), *whole]:
        layout.add(source.path, source.root)
    # A context below the app's folder is the top of its files, as one above is the top of everything.
    of_its_own = context != app_file.parent and context.is_relative_to(app_file.parent)
    for path in extra:
        if path.resolve() != app_file:
            layout.add(path, context, path.relative_to(context).as_posix() if of_its_own else None)
    return Bundle(
        entry_file=layout.place(app_file, app_file.parent),
        files=tuple(layout.files[path] for path in sorted(layout.files)),
        paths=layout.paths,
        third_party=tuple(sorted(imports.third_party)),
        perhaps=tuple(sorted(imports.perhaps - imports.third_party)),
    )


def _base(app_file: Path, sources: Sequence[Source], context: Path | None) -> Path:
    """The outermost folder above the app that something was found in: the bundle's top."""
    used = [app_file.parent, *(source.root for source in sources)]
    if context is not None:
        used.append(context)
    above = [root for root in used if app_file.parent.is_relative_to(root)]
    return min(above, key=lambda root: len(root.parts))


class _Layout:
    def __init__(self, base: Path) -> None:
        self._base = base
        self._from: dict[str, Path] = {}
        self.files: dict[str, BundleFile] = {}
        self.paths: dict[str, Path] = {}

    def place(self, path: Path, root: Path) -> str:
        """Where a file lies in the bundle: as on disk below the top, else relative to its own search folder, since
        the bundle's top is on ``sys.path`` in a runner."""
        folder = self._base if root.is_relative_to(self._base) and _keeps_place(root, self._base) else root
        return PurePosixPath(path.relative_to(folder)).as_posix()

    def add(self, path: Path, root: Path, name: str | None = None) -> None:
        name = name or self.place(path, root)
        real = path.resolve()
        if name in self._from:
            if self._from[name] != real:
                raise Problem(
                    f"Two files want to be {name} in the bundle.",
                    why=f"{self._from[name]} and {real}.",
                    next_step="rename one, or import it from a single folder.",
                )
            return
        if not real.is_relative_to(root.resolve()):
            raise Problem(
                f"{path} is a link that leaves {root}.",
                why=f"it leads to {real}.",
                next_step="copy the file into the folder, or widen app_files_context_dir.",
            )
        self._from[name] = real
        file = _describe(real, name)
        self.files[name] = file
        self.paths[file.sha256] = real


def _keeps_place(root: Path, base: Path) -> bool:
    # A project's ``src`` is a search folder beside the app's, so its modules move to the top.
    return root == base or root.name != "src"


def _describe(path: Path, name: str) -> BundleFile:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise Problem(f"{path} is not a plain file and cannot be part of an app.")
        if status.st_size > FILE_LIMIT:
            raise Problem(
                f"{path} is too large for a bundle: {status.st_size / (1 << 30):.2f} GiB; the limit is 1 GiB a file.",
                next_step="leave it out with app_files_ignore and fetch it in setup(), for example into /data.",
            )
        digest = hashlib.sha256()
        with path.open("rb") as stream:
            while block := stream.read(_BLOCK):
                digest.update(block)
    except OSError as error:
        raise Problem(f"{path} cannot be read.", why=error.strerror or str(error)) from error
    return BundleFile(name, digest.hexdigest(), status.st_size, bool(status.st_mode & 0o111))


def _whole_module(name: str, imports: LocalImports) -> list[Source]:
    """Every file of a module named in ``local_python_modules``, wherever this interpreter finds it."""
    root, path = _find_module(name, imports.roots)
    if path.is_file() and path.name != "__init__.py":
        imports.follow_module(name)
        return [Source(path, root, name)]
    folder = path.parent if path.is_file() else path
    imports.follow_module(name)
    return [Source(item, root, name) for item in walk(folder, root, DEFAULT_IGNORE) if item not in imports.sources]


def _find_module(name: str, roots: Sequence[Path]) -> tuple[Path, Path]:
    from importlib.util import find_spec

    parts = name.split(".")
    for root in roots:
        target = root.joinpath(*parts)
        for path in (target / "__init__.py", target.with_suffix(".py"), target):
            if path.is_file() or (path == target and path.is_dir()):
                return root, path
    try:
        spec = find_spec(name)
    except (ImportError, ValueError):
        spec = None
    places = [spec.origin] if spec and spec.origin and spec.has_location else []
    places += (spec.submodule_search_locations or []) if spec else []
    if not places:
        raise Problem(
            f"local_python_modules names {name!r}, which is not found.",
            why=f"looked in {', '.join(str(root) for root in roots)} and in this interpreter's packages.",
            next_step="give the module's import name, as in `import NAME`.",
        )
    path = Path(places[0]).resolve()
    if path.suffix != ".py" and not path.is_dir():
        raise Problem(
            f"local_python_modules names {name!r}, which is not Python source.",
            why=f"it is {path}.",
            next_step="list the package that holds it in requirements instead.",
        )
    top = path.parents[len(parts)] if path.name == "__init__.py" else path.parents[len(parts) - 1]
    return top, path


def _app_files(context: Path, entries: Sequence[str], ignore: Sequence[str]) -> Iterator[Path]:
    if not entries:
        return
    if not context.is_dir():
        raise Problem(f"app_files_context_dir is not a folder: {context}.")
    patterns = [_compiled(regex) for regex in ignore]
    for entry in entries:
        path = Path(os.path.normpath(context / entry))
        if not path.is_relative_to(context):
            raise Problem(
                f"app_files names {entry!r}, which lies outside {context}.",
                next_step="set app_files_context_dir to a folder above both.",
            )
        if path.is_dir():
            yield from walk(path, context, ignore)
        elif path.exists():
            if not _ignored(path.relative_to(context).as_posix(), patterns):
                yield path
        else:
            raise Problem(
                f"app_files names {entry!r}, which does not exist.",
                why=f"looked for {path}.",
                next_step="paths are relative to the app's folder, or to app_files_context_dir.",
            )


def _compiled(regex: str) -> re.Pattern[str]:
    try:
        return re.compile(regex)
    except re.error as error:
        raise Problem(
            f"app_files_ignore holds {regex!r}, which is not a regular expression.", why=str(error)
        ) from error


def _ignored(name: str, patterns: Sequence[re.Pattern[str]]) -> bool:
    return any(pattern.search(name) for pattern in patterns)


def walk(folder: Path, root: Path, ignore: Sequence[str]) -> Iterator[Path]:
    """Files below ``folder`` in a stable order; linked folders are entered once each.

    Args:
        root: what no folder may leave by a link, and what paths are relative to for ``ignore`` (regexes).

    Raises:
        Problem: a link leaves ``root``, or ``ignore`` holds no regex.
    """
    patterns = [_compiled(regex) for regex in ignore]
    seen: set[Path] = set()
    for current, folders, names in os.walk(folder, followlinks=True):
        here = Path(current)
        real = here.resolve()
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        if not real.is_relative_to(root.resolve()):
            raise Problem(
                f"{here} is a link that leaves {root}.",
                why=f"it leads to {real}.",
                next_step="copy the folder, leave it out with app_files_ignore, or widen app_files_context_dir.",
            )
        folders[:] = sorted(
            name for name in folders if not _ignored((here / name).relative_to(root).as_posix() + "/", patterns)
        )
        for name in sorted(names):
            path = here / name
            if not _ignored(path.relative_to(root).as_posix(), patterns):
                yield path
