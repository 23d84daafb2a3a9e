"""Loads an app's file from the bundle as a real module, so that tracebacks show real files.

Owns module naming and the import path. Leaves instantiating to ``life``.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import os
import sys
from pathlib import Path, PurePosixPath
from types import ModuleType

from fal._functions import CalledWhileRead, IsolatedFunction, reading
from fal._runner.errors import LoadError
from fal.app import App


def prepare_path(bundle_dir: str, entry_file: str) -> None:
    """Make the bundle the working directory and put it, and the file's folder, first on the import path."""
    os.chdir(bundle_dir)
    folder = str((Path(bundle_dir) / entry_file).parent)
    for place in (bundle_dir, folder):
        if place in sys.path:
            sys.path.remove(place)
        sys.path.insert(0, place)
    sys.argv = [entry_file]


def load_module(bundle_dir: str, entry_file: str) -> tuple[ModuleType, str]:
    """Import the app's file; whatever it raises passes through.

    Returns:
        The module, and the function whose call at its top level ended the reading; empty when it was read whole.

    Raises:
        LoadError: the file is not in the bundle.
    """
    path = Path(bundle_dir) / entry_file
    if not path.is_file():
        raise LoadError(f"the bundle has no file {entry_file!r}")
    name = _module_name(Path(bundle_dir), PurePosixPath(entry_file))
    if "." in name:
        importlib.import_module(name.rpartition(".")[0])
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise LoadError(f"{entry_file!r} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with reading():
            spec.loader.exec_module(module)
    except CalledWhileRead as call:
        return module, call.name
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module, ""


def find_app(module: ModuleType, class_name: str, called: str = "") -> type[App]:
    """The class (or served function) called ``class_name``.

    Args:
        called: the function whose call ended the reading of the file.

    Raises:
        LoadError: there is none; names what the file does define.
    """
    target: object = module
    for part in class_name.split("."):
        target = getattr(target, part, None)
    if inspect.isclass(target) and issubclass(target, App):
        return target
    if isinstance(target, IsolatedFunction):
        return target.as_app()
    if target is None and called:
        raise LoadError(unread(module, class_name, called))
    known = [name for name, value in vars(module).items() if _is_app(value, module)]
    close = difflib.get_close_matches(class_name, known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"it defines {', '.join(known) or 'no fal.App'}"
    what = "is not a fal.App" if target is not None else "is not defined"
    raise LoadError(f"{class_name} {what} in {Path(module.__file__ or '').name}: {hint}")


def unread(module: ModuleType, name: str, called: str) -> str:
    """What to do about a file that was not read up to what is wanted of it."""
    return (
        f"{name} is defined in {Path(module.__file__ or '').name} behind a call of {called}() at the top level, where "
        'reading ends: put that call under `if __name__ == "__main__":`'
    )


def _is_app(value: object, module: ModuleType) -> bool:
    if isinstance(value, IsolatedFunction):
        return True
    return inspect.isclass(value) and issubclass(value, App) and value.__module__ == module.__name__


def _module_name(bundle: Path, entry: PurePosixPath) -> str:
    """Dotted when the file lies in a package, so that its relative imports work; else the file's own name."""
    packages: list[str] = []
    folder = entry.parent
    while folder.name and (bundle / folder / "__init__.py").is_file() and folder.name.isidentifier():
        packages.insert(0, folder.name)
        folder = folder.parent
    if packages and folder == PurePosixPath():
        return ".".join([*packages, entry.stem])
    # A file called json.py or torch.py must not take the place of the module that everything else imports.
    taken = entry.stem in sys.modules or entry.stem in sys.stdlib_module_names
    return f"fal_app_{entry.stem}" if taken or not entry.stem.isidentifier() else entry.stem
