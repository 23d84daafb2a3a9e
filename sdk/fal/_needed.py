"""Packages that some helpers need and most apps do not have."""

from __future__ import annotations

import importlib
from typing import Any


def needed(module: str, by: str, *requirements: str) -> Any:
    """``module``, imported.

    Raises:
        ImportError: it is not installed; says what to add to the app's requirements.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        listed = ", ".join(repr(name) for name in requirements)
        raise ImportError(f"{by} needs {module}, which this app does not have: add {listed} to requirements") from error
