"""Parts of fal that this platform does not have: importing a name from one says what to do instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn


class AbsentError(ImportError):
    """A part of fal that this platform does not have."""


def absent(module: str, instead: str) -> Callable[[str], Any]:
    """A module's ``__getattr__`` that refuses every public name with one sentence."""

    def refuse(name: str) -> NoReturn:
        if name.startswith("_"):  # what Python itself looks for in modules
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        raise AbsentError(f"{module}.{name} is not there on this platform: {instead}", name=module)

    return refuse
