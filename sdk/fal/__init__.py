"""What user code imports as ``fal``: the public names, each loaded when it is first used (PEP 562).

``import fal`` stays cheap on purpose: the command line, the supervisor and every user file pay for it, and none of them
wants fastapi, pydantic or Pillow before a class that needs them is touched.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fal._billing import BillingDeclaration
    from fal._container import ContainerImage
    from fal._endpoints import endpoint, realtime
    from fal._functions import cached, function, isolated
    from fal._health_check import HealthCheck
    from fal._settings import RetryConfig
    from fal._sync_dir import sync_dir
    from fal.app import App, RequestContext

__version__ = "0.1.0"

#: public name -> module that defines it
_HOMES = {
    "App": "fal.app",
    "BillingDeclaration": "fal._billing",
    "ContainerImage": "fal._container",
    "HealthCheck": "fal._health_check",
    "RequestContext": "fal.app",
    "RetryConfig": "fal._settings",
    "cached": "fal._functions",
    "endpoint": "fal._endpoints",
    "function": "fal._functions",
    "isolated": "fal._functions",
    "realtime": "fal._endpoints",
    "sync_dir": "fal._sync_dir",
}
_SUBMODULES = frozenset({"api", "app", "apps", "distributed", "exceptions", "ref", "toolkit", "wma", "workflows"})

__all__ = [
    "App",
    "BillingDeclaration",
    "ContainerImage",
    "HealthCheck",
    "RequestContext",
    "RetryConfig",
    "__version__",
    "cached",
    "endpoint",
    "function",
    "isolated",
    "realtime",
    "sync_dir",
]


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f"fal.{name}")
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'fal' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_SUBMODULES})
