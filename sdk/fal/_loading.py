"""From a reference (``file.py``, ``file.py::Name`` or a name in pyproject.toml) to an app's spec and bundle.

Owns running the user's file, finding the class and explaining what is wrong with either. Leaves the settings' meaning
to ``fal._settings`` and the files to ``fal._bundle``.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from fal import _local_requirements
from fal._bundle import Bundle, collect, search_roots
from fal._import_failure import explain, flat, names_requirement, user_frames
from fal._imports import entry_source
from fal._limits import APP_NAME_RULE, is_app_name, name_in_env
from fal._problem import Problem, closest
from fal._pyproject import NamedApp, app_names, find_pyproject, named_app
from fal._settings import ATTRIBUTES, AppSettings
from fal._spec import AppSpec, Auth, EnvironmentSpec

#: Exit status of a command that Ctrl-C ended, as shells have it.
INTERRUPTED = 130


class LoadError(Problem):
    """The app cannot be read from its file; nothing was sent anywhere."""

    @classmethod
    def of(cls, problem: Problem) -> LoadError:
        """The same words as a LoadError."""
        return cls(problem.what, why=problem.why, next_step=problem.next_step, detail=problem.detail)


@dataclass(frozen=True)
class LoadedApp:
    """An app as its file describes it: the class itself, what the platform is told, and what travels."""

    cls: type
    spec: AppSpec
    bundle: Bundle
    file: Path
    reset_scale: bool = False
    strategy: str = "rolling"
    archives: Mapping[str, Path] = field(default_factory=dict)

    @property
    def uploads(self) -> dict[str, Path]:
        """Everything that travels: SHA-256 to a local file with those bytes."""
        return {**self.bundle.paths, **self.archives}


def load(
    ref: str | None,
    *,
    app_name: str | None = None,
    auth: Auth | None = None,
    machine_type: str | None = None,
    env: str = "main",
    run: bool = False,
    cwd: Path | None = None,
) -> LoadedApp:
    """Run the app's file and describe what it asks for.

    Args:
        ref: ``file.py``, ``file.py::Name`` or a name of ``[tool.fal.apps]``; None takes the only such name.
        app_name, auth, machine_type: given on the command line; beat file and class.
        env: the named environment that it goes to, whose mark its name then carries.
        run: for ``fal run``, which is public unless ``auth`` says otherwise, whatever the class says.

    Raises:
        LoadError: with the cause and the next step.
    """
    cwd = Path.cwd() if cwd is None else cwd
    try:
        named = _find(ref, cwd)
        file = _existing_file(named.file, cwd)
        roots = search_roots(file, cwd)
        module, called = _run_file(file, roots, named.settings)
        symbol, cls = _find_app(module, file, named.symbol, called)
        settings = _settings(cls, named.settings, machine_type)
        settings, archives = send_along(settings, file)
        bundle = bundle_of(file, settings, roots)
    except LoadError:
        raise
    except Problem as problem:
        raise LoadError.of(problem) from problem.__cause__
    chosen = {
        "name": _checked_name(name_in_env(app_name or named.name or settings.spec["name"], env), cls),
        "env": env,
        "class_name": symbol,
        "entry_file": bundle.entry_file,
        "auth": auth or ("public" if run else settings.spec.get("auth") or named.auth),
    }
    environment = EnvironmentSpec(**settings.environment, smoke_imports=smoke_imports(bundle, settings))
    spec = AppSpec(**{**settings.spec, **chosen, "environment": environment})
    return LoadedApp(cls, spec, bundle, file, named.reset_scale, named.strategy or "rolling", archives)


# --- which file and which name ----------------------------------------------------------------------------------------


def _find(ref: str | None, cwd: Path) -> NamedApp:
    pyproject = find_pyproject(cwd)
    if ref is None:
        names = app_names(pyproject) if pyproject is not None else []
        if pyproject is None or len(names) != 1:
            raise LoadError(
                "Which app?",
                why=f"{pyproject} has {', '.join(names)}." if names else "no pyproject.toml here names an app.",
                next_step="give a file, as in app.py::MyApp" + (", or one of those names." if names else "."),
            )
        ref = names[0]
    file, separator, symbol = ref.partition("::")
    if separator or file.endswith(".py"):
        return NamedApp("", Path(file), symbol or None, None, False)
    if "/" in file or (cwd / file).exists():
        raise LoadError(
            f"{ref!r} is not a Python file.", next_step="name the file that holds the app, as in app.py::MyApp."
        )
    if pyproject is None or (file not in app_names(pyproject) and (cwd / f"{file}.py").is_file()):
        exists = (cwd / f"{file}.py").is_file()
        raise LoadError(
            f"No app {ref!r}.",
            why="a name without .py is looked up in pyproject.toml"
            + (", and none was found here or above." if pyproject is None else f", and {pyproject} does not have it."),
            next_step=f"did you mean {file}.py?" if exists else "give a file, as in app.py::MyApp.",
        )
    return named_app(pyproject, file)


def _existing_file(file: Path, cwd: Path) -> Path:
    path = (cwd / file.expanduser()).absolute()
    if path.is_file():
        return path.resolve()
    if path.is_dir():
        raise LoadError(f"{file} is a folder.", next_step=f"name the file inside it, as in {file}/app.py::MyApp.")
    neighbours = [item.name for item in path.parent.glob("*.py")] if path.parent.is_dir() else []
    near = closest(path.name, neighbours)
    raise LoadError(
        f"There is no file {file}.",
        why=f"looked for {path}." if path.parent.is_dir() else f"there is no folder {path.parent}.",
        next_step=f"did you mean {path.with_name(near).relative_to(path.parent)}?" if near else "check the path.",
    )


def _checked_name(name: Any, cls: type) -> str:
    if not isinstance(name, str) or not is_app_name(name):
        raise LoadError(
            f"{name!r} cannot be an app's name.",
            why=f"it is part of the URL of {cls.__name__}: {APP_NAME_RULE}.",
            next_step="give another with --app-name, or app_name = ... in the class.",
        )
    return name


# --- running the file -------------------------------------------------------------------------------------------------


def _run_file(file: Path, roots: Sequence[Path], settings: Mapping[str, Any]) -> tuple[ModuleType, str]:
    """The file's module, and the function whose call at its top level ended the reading, if one did."""
    from fal._functions import CalledWhileRead, reading

    entry = entry_source(file)
    name, package = entry.module, entry.module.rpartition(".")[0]
    if not package and (not name.isidentifier() or name in sys.modules or name in sys.stdlib_module_names):
        name = f"_fal_app_{re.sub(r'[^A-Za-z0-9_]', '_', file.stem)}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise LoadError(f"{file} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    # As for a script: its own folder first, or that of its package; the project behind everything installed.
    sys.path.insert(0, str(entry.root))
    sys.path += [str(root) for root in roots if str(root) not in sys.path]
    try:
        if package:
            importlib.import_module(package)
        sys.modules[name] = module
        with reading():
            spec.loader.exec_module(module)
    except CalledWhileRead as call:
        return module, call.name
    except KeyboardInterrupt as error:
        frames = user_frames(error.__traceback__)
        raise LoadError(
            f"Interrupted while {file.name} was being imported.", detail=frames, exit_code=INTERRUPTED
        ) from error
    except BaseException as error:  # whatever user code raises at import, SystemExit included, is theirs to read
        raise LoadError.of(explain(error, file, flat(settings.get("requirements", ())))) from error
    return module, ""


# --- finding the class ------------------------------------------------------------------------------------------------


def _find_app(module: ModuleType, file: Path, symbol: str | None, called: str) -> tuple[str, type]:
    """The class that ``symbol`` names, else the only one; a served function stands for the app that serves it."""
    found = {name: app for name, value in vars(module).items() if (app := _as_app(value)) is not None}
    own = {name: app for name, app in found.items() if app.__module__ == module.__name__}
    listing = f"apps in {file.name}: {', '.join(own or found)}." if found else f"{file.name} holds no fal.App."
    if symbol is None:
        if not own:
            raise LoadError(
                f"There is no app in {file.name}.",
                why=listing,
                next_step=_call_it(module) or _write_an_app("MyApp"),
            )
        return _only(own, file)
    if symbol in found:
        return symbol, found[symbol]
    what = f"{file.name} has no class {symbol!r}."
    if hasattr(module, symbol):
        what = f"{symbol!r} in {file.name} is not a fal.App but {_kind(getattr(module, symbol))}."
    if called and not hasattr(module, symbol):
        raise LoadError(
            what,
            why=f"the file is read up to the call of {called}() at its top level.",
            next_step='put that call under `if __name__ == "__main__":`.',
        )
    near = closest(symbol, found)
    step = f"did you mean {file.name}::{near}?" if near else "name one of those." if found else _write_an_app(symbol)
    raise LoadError(what, why=listing, next_step=step)


def _as_app(value: Any) -> type | None:
    from fal.app import App

    if isinstance(value, type):
        return value if issubclass(value, App) and value is not App else None
    functions = sys.modules.get("fal._functions")
    if functions is None or not isinstance(value, functions.IsolatedFunction) or not value.is_app:
        return None
    try:
        app: type = value.as_app()
    except (ValueError, TypeError) as error:
        raise LoadError(str(error)) from error
    return app


def _only(apps: Mapping[str, type], file: Path) -> tuple[str, type]:
    # A class that another one extends is its base, not a second app.
    leaves = {n: c for n, c in apps.items() if not any(o is not c and issubclass(o, c) for o in apps.values())}
    if len(leaves) > 1:
        leaves = {name: cls for name, cls in leaves.items() if _has_endpoints(cls)} or leaves
    if len({id(cls) for cls in leaves.values()}) == 1:
        return next(iter(leaves.items()))
    raise LoadError(
        f"{file.name} has {len(leaves)} apps: {', '.join(leaves)}.",
        next_step=f"name one, as in {file.name}::{next(iter(leaves))}.",
    )


def _has_endpoints(cls: type) -> bool:
    from fal._endpoints import collect as endpoints_of

    try:
        return bool(endpoints_of(cls))
    except ValueError:  # said when this app is the one that was named
        return True


def _kind(value: Any) -> str:
    if isinstance(value, type):
        return "a class that does not extend fal.App"
    if type(value).__name__ == "IsolatedFunction":
        return "a function without serve=True, which is run by calling it"
    return "a function" if callable(value) else f"a {type(value).__name__}"


def _call_it(module: ModuleType) -> str:
    """What to do with functions that have no address; nothing where there are none."""
    plain = [name for name, value in vars(module).items() if type(value).__name__ == "IsolatedFunction"]
    if not plain:
        return ""
    return f"run the script that calls {plain[0]}(), or write serve=True into its @fal.function to give it an address."


def _write_an_app(name: str) -> str:
    return f'write `class {name}(fal.App):` with a method marked @fal.endpoint("/").'


# --- settings and files -----------------------------------------------------------------------------------------------


def _settings(cls: Any, from_project: Mapping[str, Any], machine_type: str | None) -> AppSettings:
    """The class's settings; the project's file fills in what no class of the family sets itself."""
    from fal.app import App, app_spec_settings

    family = [parent for parent in cls.__mro__ if issubclass(parent, App) and parent is not App]
    for key, value in from_project.items():
        if key in ATTRIBUTES and not any(key in vars(parent) for parent in family):
            setattr(cls, key, value)
    if machine_type is not None:
        cls.machine_type = machine_type
    try:
        settings: AppSettings = app_spec_settings(cls)
    except (ValueError, TypeError) as error:
        raise LoadError(str(error)) from error
    for line in flat(settings.environment["requirements"]):
        check_requirement(cls.__name__, line)
    return settings


def check_requirement(owner: str, line: str) -> None:
    text = line.strip()
    if _local_requirements.is_path(text):
        return
    local = text.startswith(("file:", "-e", "--editable", "-r", "--requirement", "-c", "--constraint"))
    if local or not text:
        raise LoadError(
            f"{owner}: requirements holds {line!r}, which names a file of this machine."
            if text
            else f"{owner}: requirements holds an empty line.",
            why="environments are built where those files are not." if text else "",
            next_step='list packages by name and local projects by path, as in "." or "../shop[extra]"; modules travel '
            "by being imported, or with local_python_modules = [...]; pins of other packages belong into "
            "constraints = [...]."
            if text
            else "remove it.",
        )


def send_along(settings: AppSettings, file: Path) -> tuple[AppSettings, dict[str, Path]]:
    """Requirements that are paths, under the names that they have once they were sent."""
    base = (file.parent / Path(settings.requirements_context_dir or ".").expanduser()).resolve()
    layers, archives = _local_requirements.pack(settings.environment["requirements"], base)
    return replace(settings, environment={**settings.environment, "requirements": layers}), archives


def bundle_of(file: Path, settings: AppSettings, roots: Sequence[Path]) -> Bundle:
    context = settings.app_files_context_dir
    return collect(
        file,
        local_python_modules=settings.local_python_modules,
        app_files=settings.app_files,
        app_files_ignore=settings.app_files_ignore,
        app_files_context_dir=(file.parent / Path(context).expanduser()) if context else None,
        roots=roots,
    )


def smoke_imports(bundle: Bundle, settings: AppSettings) -> tuple[str, ...]:
    lines = flat(settings.environment["requirements"])
    listed = (name for name in bundle.perhaps if names_requirement(re.split("[.:]", name)[0], lines))
    return tuple(sorted({*bundle.third_party, *listed}))
