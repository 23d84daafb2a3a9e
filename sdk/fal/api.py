"""Names that user code imports from ``fal.api``; each lives elsewhere."""

from __future__ import annotations

from fal._client import SyncServerlessClient
from fal._client_records import AppInfo, Deployment, EnvironmentInfo, KeyInfo, RunnerInfo, SecretInfo
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
    "AppInfo",
    "Deployment",
    "EnvironmentInfo",
    "FalMissingDependencyError",
    "FalSerializationError",
    "FalServerlessError",
    "FalServerlessException",
    "IsolatedFunction",
    "KeyInfo",
    "RunnerInfo",
    "SecretInfo",
    "SpawnInfo",
    "SyncServerlessClient",
    "UserFunctionException",
    "cached",
    "function",
    "isolated",
]
