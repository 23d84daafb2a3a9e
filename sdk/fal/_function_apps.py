"""Apps made of functions that are served: ``POST /`` calls the function, or its own web server is the app.

Leaves the declaration to ``fal._functions``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, ClassVar

from fal._endpoints import endpoint, resolved_signature
from fal._functions import IsolatedFunction
from fal.app import App

#: What a function gets where it does not say otherwise; an app has other defaults.
DEFAULTS: dict[str, Any] = {"machine_type": "XS", "keep_alive": 10}


class CallsApp(App, **DEFAULTS):
    """What answers the calls of a function looks like this from outside; ``fal._runner.calls`` fills it in."""

    @endpoint("/")
    def call(self) -> None: ...


class WebServerApp(App, **DEFAULTS):
    """The app of a function that starts a web server; what a caller gets is the server's answer."""

    #: the function
    server: ClassVar[Callable[..., Any]]
    #: what it gets first, if it has a ``setup_function``
    first: tuple[Any, ...] = ()

    @endpoint("/")
    def run(self) -> None: ...


def served_app(isolated: IsolatedFunction[Any, Any]) -> type[App]:
    """The app class that serves a function.

    Raises:
        ValueError: the function is not served, or has a setting that does not exist or cannot be meant.
    """
    if isolated.options.get("exposed_port") is not None:
        return _web_server_app(isolated)
    function = isolated.raw_func
    name = function.__name__
    if not isolated.serve:
        raise ValueError(f"{name} has no address: write @fal.function(..., serve=True) to serve it at POST /")
    setup_function = isolated.options.get("setup_function")
    body: dict[str, Any] = {
        "__module__": function.__module__,
        "__qualname__": name,
        "app_name": app_name(name),
    }
    if setup_function is not None:
        body["setup"] = _setup_method(setup_function)
    body["run"] = endpoint("/")(_as_method(function, with_setup=setup_function is not None))
    return type(name, (App,), body, **{**DEFAULTS, **isolated.options})


def _web_server_app(isolated: IsolatedFunction[Any, Any]) -> type[App]:
    function, port = isolated.raw_func, isolated.options["exposed_port"]
    name = function.__name__
    if isinstance(port, bool) or not isinstance(port, int) or not 1 <= port <= 65535:
        raise ValueError(f"{name}: exposed_port is {port!r}; write the number of a port, 1 to 65535")
    if isolated.serve:
        raise ValueError(
            f"{name}: serve=True and exposed_port={port} exclude each other: either the platform serves the function "
            "at POST /, or the function starts a web server"
        )
    setup_function = isolated.options.get("setup_function")
    body: dict[str, Any] = {
        "__module__": function.__module__,
        "__qualname__": name,
        "app_name": app_name(name),
        "server": staticmethod(function),
        "_web_server_port": port,
    }
    if setup_function is not None:
        body["setup"] = _setup_method(setup_function)
    options = {key: value for key, value in isolated.options.items() if key != "exposed_port"}
    return type(name, (WebServerApp,), body, **{**DEFAULTS, **options})


def app_name(function_name: str) -> str:
    """The alias of a function's app."""
    return function_name.replace("_", "-").strip("-").lower() or "function"


def _setup_method(setup_function: Callable[[], Any]) -> Callable[[Any], Any]:
    async def setup(self: Any) -> None:
        value = setup_function()
        self._set_up = await value if inspect.isawaitable(value) else value
        self.first = (self._set_up,)

    return setup


def _as_method(function: Callable[..., Any], *, with_setup: bool) -> Callable[..., Any]:
    """``function`` with a leading ``self``; the setup function's value becomes its first argument."""
    signature = resolved_signature(function) or inspect.signature(function)
    parameters = list(signature.parameters.values())
    myself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    signature = signature.replace(parameters=[myself, *parameters[1 if with_setup else 0 :]])

    def call(self: Any, **arguments: Any) -> Any:
        return function(self._set_up, **arguments) if with_setup else function(**arguments)

    async def call_async(self: Any, **arguments: Any) -> Any:
        return await (function(self._set_up, **arguments) if with_setup else function(**arguments))

    method: Any = call_async if inspect.iscoroutinefunction(function) else call
    method.__name__ = function.__name__
    method.__doc__ = function.__doc__
    method.__module__ = function.__module__
    method.__annotations__ = {n: p.annotation for n, p in signature.parameters.items() if p.annotation is not p.empty}
    method.__annotations__["return"] = signature.return_annotation
    method.__signature__ = signature
    return method  # type: ignore[no-any-return]
