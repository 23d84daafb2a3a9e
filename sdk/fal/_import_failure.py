"""Why the user's file could not be imported, in their own frames and with the next step.

Owns trimming tracebacks and telling a missing module from a forgotten requirement. Runs nothing.
"""

from __future__ import annotations

import ast
import linecache
import re
import sys
import traceback
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from fal._imports import invalid_python
from fal._problem import Problem

_HERE = Path(__file__).parent
_REQUIREMENT_NAME = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)")
#: Import names that differ from the package's name; enough for advice.
_PACKAGES = {
    "PIL": ("pillow",),
    "cv2": ("opencv-python", "opencv-python-headless", "opencv-contrib-python"),
    "sklearn": ("scikit-learn",),
    "skimage": ("scikit-image",),
    "yaml": ("pyyaml",),
    "bs4": ("beautifulsoup4",),
    "dateutil": ("python-dateutil",),
    "dotenv": ("python-dotenv",),
    "faiss": ("faiss-cpu", "faiss-gpu"),
    "fitz": ("pymupdf",),
    "Crypto": ("pycryptodome",),
}


def explain(error: BaseException, file: Path, requirements: Iterable[str] = ()) -> Problem:
    """What the user is told when running ``file`` raised ``error``.

    Args:
        requirements: pip lines that are known from elsewhere (pyproject.toml); those in the file are found there.
    """
    if isinstance(error, SyntaxError):
        return invalid_python(file, error)
    frames = user_frames(error.__traceback__)
    if isinstance(error, SystemExit):
        return Problem(
            f"{file.name} ends the program while it is being imported.",
            detail=frames,
            next_step='put what runs as a script under `if __name__ == "__main__":`.',
        )
    if isinstance(error, (ValueError, TypeError)) and _raised_by_us(error.__traceback__):
        return Problem(str(error), detail=frames)
    last = "".join(traceback.format_exception_only(type(error), error)).strip()
    step = "what the file does at import must work here as well as on the worker."
    if isinstance(error, ModuleNotFoundError) and error.name:
        step = _missing_module(error.name, file, requirements)
    elif isinstance(error, ImportError) and "no known parent package" in str(error):
        step = "import it by its full name; the app's folder, the working folder and the project's are searched."
    return Problem(f"{file.name} does not load.", detail=[*frames, *last.splitlines()], next_step=step)


def user_frames(trace: TracebackType | None) -> list[str]:
    """The frames of the user's own files: this package, the import system and installed packages are left out."""
    lines = []
    for frame, number in traceback.walk_tb(trace):
        filename = frame.f_code.co_filename
        installed = "site-packages" in filename or filename.startswith(f"{sys.base_prefix}/lib/")
        if filename.startswith("<") or installed or Path(filename).is_relative_to(_HERE):
            continue
        lines.append(f'File "{filename}", line {number}, in {frame.f_code.co_name}')
        if source := linecache.getline(filename, number).strip():
            lines.append(f"  {source}")
    return lines


def _raised_by_us(trace: TracebackType | None) -> bool:
    frames = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(trace)]
    return bool(frames) and Path(frames[-1]).is_relative_to(_HERE)


def _missing_module(module: str, file: Path, requirements: Iterable[str]) -> str:
    top = module.partition(".")[0]
    if names_requirement(top, [*requirements, *written_requirements(file)]):
        return (
            f"{top} is in requirements, so the worker has it, but this Python does not: move `import {top}` into "
            "setup() (or the method that uses it), or install it here too."
        )
    return (
        f"if {top} is a package, add it to requirements and import it inside setup(); "
        f"if it is a file of yours, it must lie in {file.parent} or in the project's folder."
    )


def written_requirements(file: Path) -> list[str]:
    """What the classes of a file that does not load give as ``requirements``, as far as it is written out."""
    found: list[str] = []
    with suppress(SyntaxError, ValueError, OSError):
        for node in ast.walk(ast.parse(file.read_bytes())):
            written = _requirements_value(node)
            if written is not None:
                with suppress(ValueError):
                    found += flat(ast.literal_eval(written))
    return found


def _requirements_value(node: ast.AST) -> ast.expr | None:
    if isinstance(node, ast.Assign):
        named = any(isinstance(item, ast.Name) and "requirements" in item.id.lower() for item in node.targets)
        return node.value if named else None
    if isinstance(node, ast.AnnAssign):
        return node.value if "requirements" in getattr(node.target, "id", "").lower() else None
    if isinstance(node, ast.keyword):
        return node.value if node.arg == "requirements" else None
    return None


def flat(requirements: Any) -> list[str]:
    """All pip lines of a flat or layered list."""
    if isinstance(requirements, str):
        return [requirements]
    if not isinstance(requirements, Iterable):
        return []
    return [line for item in requirements for line in flat(item)]


def names_requirement(module: str, lines: Iterable[str]) -> bool:
    """Whether one of the pip lines is the package that provides ``module``, judged by names alone."""
    wanted = {_normalised(module), *(_normalised(name) for name in _PACKAGES.get(module, ()))}
    names = (found.group(1) for line in lines if (found := _REQUIREMENT_NAME.match(line)))
    return any(_normalised(name) in wanted for name in names)


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
