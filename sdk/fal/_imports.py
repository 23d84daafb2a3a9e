"""What Python files import, found by reading them: local modules to ship, third-party ones to try after the install.

Owns the AST walk and the search of local folders. Runs no user code. Leaves hashing and layout to ``fal._bundle``.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fal._problem import Problem

#: Errors whose handlers make an import optional.
_IMPORT_ERRORS = {"ImportError", "ModuleNotFoundError", "Exception", "BaseException", "OSError", "RuntimeError"}


@dataclass(frozen=True)
class Import:
    """One imported name: ``from a.b import c`` is module ``a.b`` with name ``c``; ``level`` counts leading dots.

    ``certain`` is False where the program may run without it: guarded by ``except ImportError``, for type checkers
    only, or under ``if __name__ == "__main__"``. ``late`` when it stands inside a function.
    """

    module: str
    names: tuple[str, ...] = ()
    level: int = 0
    certain: bool = True
    late: bool = False


class _Visitor(ast.NodeVisitor):
    def __init__(self) -> None:
        self.found: list[Import] = []
        self._certain = True
        self._late = False

    def visit_Import(self, node: ast.Import) -> None:
        self.found += [Import(alias.name, certain=self._certain, late=self._late) for alias in node.names]

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        names = tuple(alias.name for alias in node.names)
        self.found.append(Import(node.module or "", names, node.level, self._certain, self._late))

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        before, self._late = self._late, True
        self.generic_visit(node)
        self._late = before

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        before, self._late = self._late, True
        self.generic_visit(node)
        self._late = before

    def visit_Call(self, node: ast.Call) -> None:
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if called in ("import_module", "__import__") and node.args:
            first = node.args[0]
            if isinstance(first, ast.Constant) and isinstance(first.value, str) and not first.value.startswith("."):
                self.found.append(Import(first.value, certain=False))
        self.generic_visit(node)

    def visit_If(self, node: ast.If) -> None:
        if not _is_guard(node.test):
            # Either branch may be the one that runs (``if sys.platform == ...``).
            self._under(ast.unparse(node.test).find("sys.") < 0, [*node.body, *node.orelse])
            self.visit(node.test)
            return
        self._under(False, node.body)
        self._under(True, node.orelse)

    def visit_Try(self, node: ast.Try) -> None:
        guarded = any(_catches_import_error(handler) for handler in node.handlers)
        self._under(not guarded, node.body)
        self._under(not guarded, [*node.handlers, *node.orelse])
        self._under(True, node.finalbody)

    def _under(self, certain: bool, nodes: Sequence[ast.AST]) -> None:
        before, self._certain = self._certain, self._certain and certain
        for node in nodes:
            self.visit(node)
        self._certain = before


def _is_guard(test: ast.expr) -> bool:
    text = ast.unparse(test)
    return text in ("TYPE_CHECKING", "typing.TYPE_CHECKING", "__name__ == '__main__'", "False", "0")


def _catches_import_error(handler: ast.ExceptHandler) -> bool:
    if handler.type is None:
        return True
    types = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(ast.unparse(item).rsplit(".", 1)[-1] in _IMPORT_ERRORS for item in types)


def parse(path: Path) -> ast.Module:
    """The syntax tree of a file.

    Raises:
        Problem: it is not Python, or not text.
    """
    try:
        source = path.read_bytes()
        if b"\0" in source:
            raise Problem(f"{path.name} is no Python file: it holds binary data.", next_step="check the path.")
        return ast.parse(source, filename=str(path))
    except SyntaxError as error:
        raise invalid_python(path, error) from error
    except (OSError, ValueError) as error:
        raise Problem(f"{path} cannot be read as Python.", why=str(error)) from error


def invalid_python(path: Path, error: SyntaxError) -> Problem:
    """What the user is told about a file that this Python cannot parse."""
    return Problem(
        f"{path.name} does not load: it is not valid Python.",
        detail=syntax_lines(error),
        next_step=f"correct it; this is Python {sys.version_info.major}.{sys.version_info.minor}.",
    )


def syntax_lines(error: SyntaxError) -> list[str]:
    """Where the error is, as Python itself shows it."""
    lines = []
    if error.filename and error.lineno:  # absent for text that is not in the encoding it should be in
        lines.append(f'File "{error.filename}", line {error.lineno}')
    if error.text:
        text = error.text.rstrip("\n")
        column = max(0, (error.offset or 1) - 1 - (len(text) - len(text.lstrip())))
        lines += [f"  {text.strip()}", f"  {' ' * column}^"]
    return [*lines, f"{type(error).__name__}: {error.msg}"]


def imports_of(path: Path) -> list[Import]:
    """Every import statement of a file, wherever it stands."""
    visitor = _Visitor()
    visitor.visit(parse(path))
    return visitor.found


@dataclass(frozen=True)
class Source:
    """A local file that an import leads to. ``root`` is the search folder it was found in, ``module`` its full name."""

    path: Path
    root: Path
    module: str


def entry_source(file: Path) -> Source:
    """An app's file as it is loaded, here and on the worker: a script in its folder, or, when it imports relatively,
    a module of the package that it lies in."""
    parts, folder = [file.stem], file.parent
    if any(statement.level for statement in imports_of(file)):
        while (folder / "__init__.py").is_file() and folder.name.isidentifier():
            parts.insert(0, folder.name)
            folder = folder.parent
    return Source(file, folder, ".".join(parts))


@dataclass
class LocalImports:
    """Local modules reached from an app's file.

    Args:
        roots: folders to search, first match wins; the app's own folder comes first, as in ``sys.path``.

    ``third_party`` are what the app cannot do without, as ``module`` or ``module:name``; ``perhaps`` what only
    functions of its helper modules import, which it may never call.
    """

    roots: Sequence[Path]
    sources: dict[Path, Source] = field(default_factory=dict)
    third_party: set[str] = field(default_factory=set)
    perhaps: set[str] = field(default_factory=set)
    _entry: Path | None = None

    def follow(self, entry: Source) -> None:
        """Take in the app's file and everything local that it leads to."""
        self._entry = entry.path
        self._take(entry)
        for package in list(self._locate(entry.module.rpartition(".")[0])) if "." in entry.module else []:
            self._take(package)

    def follow_module(self, name: str) -> bool:
        """Take in a module or package by name; False when no root has it."""
        found = list(self._locate(name))
        if not found or found[-1].module != name:
            return False
        for source in found:
            self._take(source)
        return True

    def _take(self, first: Source) -> None:
        waiting = [first]
        while waiting:
            source = waiting.pop()
            if source.path in self.sources:
                continue
            self.sources[source.path] = source
            for statement in imports_of(source.path):
                waiting += self._follow(source, statement)

    def _follow(self, source: Source, statement: Import) -> list[Source]:
        module = _absolute(source, statement)
        if module is None:
            return []
        if statement.level == 0 and module.partition(".")[0] in sys.stdlib_module_names:
            return []  # a local file of that name would be shadowed here as well
        found: list[Source] = list(self._locate(module)) if module else []
        for name in statement.names:
            found += self._locate(f"{module}.{name}" if module else name)
        if found or not module:
            return found
        top = module.partition(".")[0]
        if statement.level == 0 and statement.certain and top != "fal":
            late_help = statement.late and source.path != self._entry
            (self.perhaps if late_help else self.third_party).update(_as_asked(module, statement.names))
        return []

    def _locate(self, module: str) -> Iterator[Source]:
        """The files that importing ``module`` executes, outer packages first; nothing when it is not local.

        A folder without ``__init__.py`` counts only on the way to a file below it: a folder of data beside the app
        must not hide an installed package of the same name.
        """
        parts = module.split(".")
        for root in self.roots:
            executed: list[Source] = []
            folder = root
            for depth, part in enumerate(parts, 1):
                name = ".".join(parts[:depth])
                if not part.isidentifier():
                    break
                if (folder / part / "__init__.py").is_file():
                    executed.append(Source(folder / part / "__init__.py", root, name))
                elif (folder / f"{part}.py").is_file():
                    executed.append(Source(folder / f"{part}.py", root, name))
                    break  # what follows is an attribute of this module
                elif not (folder / part).is_dir():
                    break
                folder = folder / part
            if executed:
                yield from executed
                return


def _absolute(source: Source, statement: Import) -> str | None:
    """The absolute name of the imported module; None when the dots lead out of the package."""
    if statement.level == 0:
        return statement.module
    package = source.module.split(".")
    if source.path.name != "__init__.py":
        package = package[:-1]
    kept = len(package) - (statement.level - 1)
    if kept <= 0:
        return None
    return ".".join([*package[:kept], *([statement.module] if statement.module else [])])


def _as_asked(module: str, names: Sequence[str]) -> list[str]:
    """``from m import a, b`` as ``m:a`` and ``m:b``: a lazy library does its work only when it is asked for ``a``."""
    return [f"{module}:{name}" for name in names if name != "*"] or [module]
