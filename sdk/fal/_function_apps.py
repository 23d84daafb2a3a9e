"""Apps made of functions that are served: ``POST /`` calls the function.

Leaves the declaration to ``fal._functions``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from fal._endpoints import endpoint, resolved_signature
from fal._functions import IsolatedFunction
from fal.app import App

#: What a function gets where it does not say otherwise; an app has other defaults.
DEFAULTS: dict[str, Any] = {"machine_type": "XS", "keep_alive": 10}


class CallsApp(App, **DEFAULTS):
    """What answers the calls of a function looks like this from outside; ``fal._runner.calls`` fills it in."""

    @endpoint("/")
    def call(self) -> None: ...


def served_app(isolated: IsolatedFunction[Any, Any]) -> type[App]:
    """The app class that serves a function.

    Raises:
        ValueError: the function is not served, or has a setting that does not exist.
    """
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


def app_name(function_name: str) -> str:
    """The alias of a function's app."""
    return function_name.replace("_", "-").strip("-").lower() or "function"


def _setup_method(setup_function: Callable[[], Any]) -> Callable[[Any], Any]:
    async def setup(self: Any) -> None:
        value = setup_function()
        self._set_up = await value if inspect.isawaitable(value) else value

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
