"""``fal.App``: the class that users subclass, and what can be read from such a class without running it.

Owns merging of settings, the app's name and the life cycle's methods. Leaves HTTP to ``fal._routes`` (imported only
when an app is served) and running to ``fal._runner``.
"""

from __future__ import annotations

import importlib
import inspect
import os
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from fal import _context
from fal._context import RequestContext
from fal._endpoints import HealthCheck, RouteSignature, check_websockets, collect, endpoint, endpoint_specs, realtime
from fal._settings import ATTRIBUTES, DEFAULTS, AppSettings, app_name_of, resolve

if TYPE_CHECKING:
    from fastapi import FastAPI

__all__ = [
    "App",
    "AppSettings",
    "HealthCheck",
    "RequestContext",
    "app_spec_settings",
    "endpoint",
    "realtime",
]


def __getattr__(name: str) -> Any:
    if name in ("AppClient", "AppClientError"):  # for tests only: runners must not pay for an HTTP client
        return getattr(importlib.import_module("fal._app_client"), name)
    raise AttributeError(f"module 'fal.app' has no attribute {name!r}")


class App:
    """One Python class that becomes a private endpoint.

    Settings are class keywords (``class A(fal.App, keep_alive=300)``) or class attributes (``keep_alive = 300``);
    subclasses inherit and override them. ``setup()`` runs once per runner before the first request, and what it leaves
    on ``self`` stays in memory.
    """

    #: All settings of this class, its parents' included.
    host_kwargs: ClassVar[dict[str, Any]] = {**DEFAULTS}
    app_name: ClassVar[str | None] = None
    machine_type: ClassVar[str | list[str]] = "S"
    requirements: ClassVar[list[str] | list[list[str]]] = []
    version: ClassVar[str] = "unknown"

    def __init_subclass__(cls, name: str | None = None, **settings: Any) -> None:
        super().__init_subclass__()
        if "__init__" in cls.__dict__:
            raise ValueError(f"{cls.__name__}.__init__ would never be given its arguments: put its code into setup()")
        merged: dict[str, Any] = {}
        for parent in reversed(cls.__mro__[1:]):
            merged.update(parent.__dict__.get("host_kwargs", {}))
        merged.update(cls.__dict__.get("host_kwargs", {}))
        merged.update({k: v for k, v in cls.__dict__.items() if k in ATTRIBUTES and _is_plain(v)})
        merged.update(settings)
        cls.host_kwargs = merged
        for key in ATTRIBUTES & settings.keys():
            setattr(cls, key, settings[key])
        cls._choose_name(name)

    @classmethod
    def _choose_name(cls, name: str | None) -> None:
        # A parent's name wins even over an explicit name=, as in fal: existing apps rely on their addresses.
        if cls.app_name is None:
            cls.app_name = name or app_name_of(cls.__name__)
        elif name is not None and name != cls.app_name:
            warnings.warn(
                f"{cls.__name__} keeps the name {cls.app_name!r}; name={name!r} is ignored. "
                f"Write app_name = {name!r} in the class to change it.",
                stacklevel=4,
            )

    def __init__(self, *, _allow_init: bool = False) -> None:
        if not _allow_init and not os.environ.get("IS_ISOLATE_AGENT"):
            name = type(self).__name__
            raise NotImplementedError(f"{name} runs on a worker, not here: start it with `fal run FILE.py::{name}`")

    # --- what a subclass may define -----------------------------------------------------------------------------------

    def setup(self) -> Any:
        """Load what requests need; called once per runner before the first request. May be ``async``."""

    def teardown(self) -> Any:
        """Called once after the last request. May be ``async``."""

    def handle_exit(self) -> None:
        """Called as soon as the runner is asked to stop, while requests may still be running."""

    def health(self) -> Any:
        """What ``GET /health`` answers. May be ``async``; raising means unhealthy."""
        return {"version": self.version}

    def provide_hints(self) -> list[str]:
        """Words that tell the platform what this runner holds; sent with every response."""
        return []

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """``setup()`` before and ``teardown()`` after everything that is served."""
        await _call(self.setup)
        os.environ["FAL_RUNNER_STATE"] = "RUNNING"
        try:
            yield
        finally:
            os.environ["FAL_RUNNER_STATE"] = "TERMINATING"
            await _call(self.teardown)

    def _add_extra_middlewares(self, app: FastAPI) -> None:
        """Hook for subclasses."""

    def _add_extra_routes(self, app: FastAPI) -> None:
        """Hook for subclasses."""

    # --- what code can ask --------------------------------------------------------------------------------------------

    @property
    def current_request(self) -> RequestContext | None:
        """The request that the calling code answers; ``None`` outside one."""
        return _context.current_request()

    @classmethod
    def get_endpoints(cls) -> list[str]:
        """Paths of all endpoints."""
        return [signature.path for signature in collect(cls).values()]

    @classmethod
    def get_health_check_config(cls) -> RouteSignature | None:
        """The endpoint marked as the health check, if any."""
        return next((s for s in collect(cls).values() if s.health_check is not None), None)

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document of the app."""
        from fal._routes import build_fastapi, openapi_of

        return openapi_of(build_fastapi(self))


def _is_plain(value: Any) -> bool:
    """A setting's value; not a method or property that happens to be called, say, ``image``."""
    return not callable(value) and not hasattr(type(value), "__get__")


async def _call(method: Any) -> None:
    result = method()
    if inspect.isawaitable(result):
        await result


def app_spec_settings(cls: type[App]) -> AppSettings:
    """Everything that ``cls`` asks for, checked.

    Raises:
        ValueError: no endpoint, an unknown setting (with the closest match), or a value that cannot be meant.
    """
    routes = collect(cls)
    if not routes:
        raise ValueError(f'{cls.__name__} has no endpoint: mark a method with @fal.endpoint("/")')
    given = {key: value for key, value in cls.host_kwargs.items() if key != "health_check_config"}
    check_websockets(cls)
    # Attributes assigned after the class was made (cls.machine_type = ...) count too.
    for key in ATTRIBUTES - {"health_check_config"}:
        value = getattr(cls, key, None)
        if value is not None and _is_plain(value):
            given[key] = value
    settings = resolve(cls.__name__, given)
    spec = {
        "name": cls.app_name,
        "class_name": cls.__qualname__,
        "endpoints": endpoint_specs(cls),
        **settings.spec,
    }
    return replace(settings, spec=spec)
