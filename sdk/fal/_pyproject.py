"""``[tool.fal.apps.NAME]`` of pyproject.toml: apps that have a name instead of a file reference.

Owns reading and the keys. Leaves checking of the settings themselves to ``fal._settings``.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fal._problem import Problem, closest
from fal._settings import ATTRIBUTES

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

#: Keys that say what to run and how, beside the app's settings.
_OWN_KEYS = frozenset(
    {
        "ref",
        "python_entry_point",
        "auth",
        "name",
        "team",
        "deployment_strategy",
        "app_scale_settings",
        "no_scale",
        "health_check",
        "exposed_port",
        "_scheduler",
        "_scheduler_options",
    }
)
#: Settings whose relative paths count from the project, not from the app's folder.
_FOLDERS = ("app_files_context_dir", "requirements_context_dir")


@dataclass(frozen=True)
class NamedApp:
    """One entry. ``file`` and ``symbol`` as in ``file.py::Symbol``; ``settings`` by the names of class settings."""

    name: str
    file: Path
    symbol: str | None
    auth: str | None
    reset_scale: bool
    strategy: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


def find_pyproject(start: Path) -> Path | None:
    """The nearest pyproject.toml at or above ``start``."""
    for folder in (start, *start.parents):
        if (folder / "pyproject.toml").is_file():
            return folder / "pyproject.toml"
    return None


def app_names(path: Path) -> list[str]:
    """Names of all apps in a pyproject.toml."""
    return list(_apps(path))


def named_app(path: Path, name: str) -> NamedApp:
    """Read one app's entry.

    Raises:
        Problem: no such app, or an entry that cannot be meant.
    """
    apps = _apps(path)
    if name not in apps:
        near = closest(name, apps)
        listing = f"it has {', '.join(apps)}." if apps else "it has no [tool.fal.apps.NAME] table."
        raise Problem(
            f"{path} has no app {name!r}.",
            why=listing,
            next_step=f"did you mean {near!r}?" if near else "give a file instead, as in `fal run app.py::MyApp`.",
        )
    entry = dict(apps[name])
    for key in entry.keys() - _OWN_KEYS - ATTRIBUTES:
        near = closest(key, _OWN_KEYS | ATTRIBUTES)
        raise Problem(
            f"[tool.fal.apps.{name}] in {path} has the unknown key {key!r}.",
            next_step=f"did you mean {near!r}?" if near else "remove it.",
        )
    folder = path.parent
    file, symbol = _target(folder, name, entry)
    settings = {key: value for key, value in entry.items() if key in ATTRIBUTES}
    if "health_check" in entry:
        settings["health_check_config"] = entry["health_check"]
    for key in _FOLDERS:
        if isinstance(settings.get(key), str):
            settings[key] = str(folder / settings[key])
    if "requirements" in settings:
        settings.setdefault("requirements_context_dir", str(folder))
    return NamedApp(
        name=str(entry.get("name", name)),
        file=file,
        symbol=symbol,
        auth=entry.get("auth"),
        reset_scale=bool(entry.get("app_scale_settings", not entry.get("no_scale", True))),
        strategy=_strategy(path, name, entry.get("deployment_strategy")),
        settings=settings,
    )


def _strategy(path: Path, name: str, value: Any) -> str | None:
    if value is None or value in ("rolling", "recreate"):
        return None if value is None else str(value)
    raise Problem(
        f"[tool.fal.apps.{name}] in {path} has deployment_strategy = {value!r}.",
        next_step='write "rolling" or "recreate".',
    )


def _apps(path: Path) -> dict[str, dict[str, Any]]:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise Problem(f"{path} cannot be read.", why=str(error)) from error
    apps = content.get("tool", {}).get("fal", {}).get("apps", {})
    return {name: entry for name, entry in apps.items() if isinstance(entry, dict)}


def _target(folder: Path, name: str, entry: Mapping[str, Any]) -> tuple[Path, str | None]:
    ref, point = entry.get("ref"), entry.get("python_entry_point")
    if isinstance(ref, str) and point is None:
        file, _, symbol = ref.partition("::")
        return folder / file, symbol or None
    if isinstance(point, str) and ref is None and point.count(":") == 1:
        module, symbol = point.split(":")
        parts = Path(*module.split("."))
        for root in (folder, folder / "src"):
            for path in (root / parts.with_suffix(".py"), root / parts / "__init__.py"):
                if path.is_file():
                    return path, symbol
        raise Problem(
            f"[tool.fal.apps.{name}] has python_entry_point {point!r}, but there is no module {module!r}.",
            why=f"looked in {folder} and {folder / 'src'}.",
        )
    raise Problem(
        f"[tool.fal.apps.{name}] does not say what to run.",
        next_step='give it ref = "path/to/app.py::MyApp", relative to the project, '
        'or python_entry_point = "module:MyApp".',
    )
