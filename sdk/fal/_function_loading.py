"""From a function of this process to the spec and the bundle of the app that its calls go to.

Owns finding the function in its file. Leaves settings, requirements and files to what ``fal._loading`` has for apps.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from fal._bundle import search_roots
from fal._endpoints import endpoint_specs
from fal._function_apps import CallsApp, app_name
from fal._functions import IsolatedFunction
from fal._import_failure import flat
from fal._loading import LoadedApp, LoadError, bundle_of, check_requirement, send_along, smoke_imports
from fal._problem import Problem
from fal._settings import resolve
from fal._spec import AppSpec, EnvironmentSpec


def load_function(function: IsolatedFunction[Any, Any]) -> LoadedApp:
    """Describe the app that calls of a function of this process go to; nothing is run.

    Raises:
        LoadError: the function lies in no file, or not at its top level; or a setting cannot be meant.
    """
    name = function.raw_func.__name__
    module, file = module_of(function)
    symbol = _symbol_of(function, module)
    roots = search_roots(file)
    try:
        settings = resolve(name, {**CallsApp.host_kwargs, **function.options})
        for line in flat(settings.environment["requirements"]):
            check_requirement(name, line)
        settings, archives = send_along(settings, file)
        bundle = bundle_of(file, settings, roots)
    except LoadError:
        raise
    except Problem as problem:
        raise LoadError.of(problem) from problem.__cause__
    except (ValueError, TypeError) as error:
        raise LoadError(str(error)) from error
    environment = EnvironmentSpec(**settings.environment, smoke_imports=smoke_imports(bundle, settings))
    own = {
        "name": app_name(symbol),
        "class_name": symbol,
        "entry_file": bundle.entry_file,
        "auth": "private",
        "for_calls": True,
        "setup_function": _setup_symbol_of(function, module, symbol),
        "endpoints": endpoint_specs(CallsApp),
        "environment": environment,
    }
    return LoadedApp(CallsApp, AppSpec(**{**settings.spec, **own}), bundle, file, archives=archives)


def module_of(function: IsolatedFunction[Any, Any]) -> tuple[ModuleType, Path]:
    module = sys.modules.get(function.raw_func.__module__)
    file = getattr(module, "__file__", None)
    if module is None or not file or not Path(file).is_file():
        raise LoadError(
            f"{function.raw_func.__name__}() lies in no file, so that it cannot be sent to the platform.",
            why="functions travel as source: those of a prompt, a notebook or `python -c` have none.",
            next_step="write it into a .py file and import it from there.",
        )
    return module, Path(file).resolve()


def _symbol_of(function: IsolatedFunction[Any, Any], module: ModuleType) -> str:
    """The name by which the file's module has the function."""
    if (name := _name_in(module, function.raw_func)) is not None:
        return name
    name = function.raw_func.__name__
    raise LoadError(
        f"{name}() cannot be found in {Path(module.__file__ or '').name}.",
        why="it is defined inside another function or class, or decorated once more above @fal.function.",
        next_step="define it at the top level of a file, with @fal.function as the outermost decorator.",
    )


def _name_in(module: ModuleType, function: Callable[..., Any]) -> str | None:
    # As a list: the script may go on in another thread, and define more.
    for name, value in list(vars(module).items()):
        if value is function or (isinstance(value, IsolatedFunction) and value.raw_func is function):
            return name
    return None


def _setup_symbol_of(function: IsolatedFunction[Any, Any], module: ModuleType, symbol: str) -> str:
    """The name of its ``setup_function`` in the file, where it is another one than the file gives; else nothing."""
    wanted = function.options.get("setup_function")
    inside = vars(module)[symbol]
    if wanted is (inside.options.get("setup_function") if isinstance(inside, IsolatedFunction) else None):
        return ""
    if wanted is not None and (name := _name_in(module, wanted)) is not None:
        return name
    raise LoadError(
        f"{function.raw_func.__name__}: .on() was given the setup_function {wanted!r}, which {module.__name__} lacks.",
        next_step="name a function of that file's top level.",
    )
