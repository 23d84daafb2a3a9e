"""Imports modules inside a new environment, in one process, and writes down what happened. A script, never imported.

Usage: python -I smoke_script.py ORDER.json RESULT.json. ORDER lists ``module``, ``module.name`` or ``module:name``.
RESULT is rewritten around every import, so that a crash leaves the name of the module that caused it. The bytecode that
the imports write is the other half of the purpose. Standard library only.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import traceback
from types import ModuleType
from typing import Any


def main(order: str, result: str) -> None:
    # A result file of its own: a module may print, or close, whatever it likes on import.
    with open(order, encoding="utf-8") as file:
        names = json.load(file)
    outcomes: list[dict[str, Any]] = []
    for name in names:
        write(result, {"importing": name, "outcomes": outcomes})
        outcome = try_import(name)
        if outcome["error"] is None:
            print(f"smoke import: {name} {outcome['seconds']:.2f} s", flush=True)
        outcomes.append(outcome)
    write(result, {"importing": None, "outcomes": outcomes})


def try_import(name: str) -> dict[str, Any]:
    started = time.perf_counter()
    outcome: dict[str, Any] = {"name": name, "error": None, "traceback": None, "installed": True, "seconds": 0.0}
    try:
        load(name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - a module may raise anything on import; it all is the outcome
        outcome["error"] = "".join(traceback.format_exception_only(type(error), error)).strip()
        outcome["traceback"] = own_frames(error)
        outcome["installed"] = is_installed(name)
    outcome["seconds"] = time.perf_counter() - started
    return outcome


def load(name: str) -> None:
    module, _, attribute = name.partition(":")
    try:
        loaded = importlib.import_module(module)
    except ModuleNotFoundError as error:
        parent, _, last = module.rpartition(".")
        if error.name != module or not parent or attribute:
            raise
        # "diffusers.StableDiffusionXLPipeline": a name inside a module, perhaps one that is only loaded when asked for.
        loaded, attribute = importlib.import_module(parent), last
    if attribute:
        take(loaded, attribute)


def take(module: ModuleType, name: str) -> None:
    """What ``from module import name`` does: an attribute, else a submodule that nothing has imported yet."""
    try:
        getattr(module, name)
    except AttributeError as error:
        submodule = f"{module.__name__}.{name}"
        try:
            importlib.import_module(submodule)
        except ModuleNotFoundError as missing:
            if missing.name != submodule:
                raise
            raise ImportError(f"cannot import name {name!r} from {module.__name__!r}", name=module.__name__) from error


def own_frames(error: BaseException) -> str:
    """The traceback without this script and without the import machinery."""
    shown = traceback.TracebackException.from_exception(error)
    seen: set[int] = set()
    chain: traceback.TracebackException | None = shown
    while chain is not None and id(chain) not in seen:
        seen.add(id(chain))
        kept = [f for f in chain.stack if f.filename != __file__ and "importlib" not in f.filename]
        chain.stack = traceback.StackSummary.from_list(kept)
        chain = chain.__cause__ or chain.__context__
    return "".join(shown.format())


def is_installed(name: str) -> bool:
    """Whether a distribution of this environment, or Python itself, provides the module's top package."""
    import importlib.metadata

    top = name.partition(":")[0].partition(".")[0]
    return top in sys.stdlib_module_names or top in importlib.metadata.packages_distributions()


def write(path: str, state: dict[str, Any]) -> None:
    with open(path + ".new", "w", encoding="utf-8") as file:
        json.dump(state, file)
    os.replace(path + ".new", path)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
    # Without interpreter shutdown: threads that modules have started must not hold the build up.
    sys.stdout.flush()
    os._exit(0)
