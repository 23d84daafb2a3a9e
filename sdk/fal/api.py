"""Names that user code imports from ``fal.api``; each lives elsewhere."""

from __future__ import annotations

from fal._functions import IsolatedFunction, cached, function, isolated
from fal._spawn_info import SpawnInfo
from fal.exceptions import (
    FalMissingDependencyError,
    FalSerializationError,
    FalServerlessError,
    FalServerlessException,
    UserFunctionException,
)

__all__ = [
    "FalMissingDependencyError",
    "FalSerializationError",
    "FalServerlessError",
    "FalServerlessException",
    "IsolatedFunction",
    "SpawnInfo",
    "UserFunctionException",
    "cached",
    "function",
    "isolated",
]
