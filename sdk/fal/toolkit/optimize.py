"""Kept so that old apps can be imported: fal removed ``optimize`` in March 2026, and it does nothing here."""

from __future__ import annotations

import warnings
from typing import TypeVar

_T = TypeVar("_T")


def optimize(module: _T, optimization_config: object = None) -> _T:
    """``module`` as it is, with a warning; torch.compile is what to use instead."""
    warnings.warn(
        "fal.toolkit.optimize does nothing: it was removed from fal. Use torch.compile(), and "
        "fal.toolkit.synchronized_inductor_cache() to keep what it compiles",
        DeprecationWarning,
        stacklevel=2,
    )
    return module
