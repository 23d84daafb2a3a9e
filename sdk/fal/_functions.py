"""``fal.function`` and ``fal.cached``: single functions instead of classes.

Owns the declaration and how a served function becomes an app. A remote call of a plain function needs a platform
session and is refused with the way round it.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import threading
from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar, overload

from fal._endpoints import endpoint, resolved_signature
from fal._settings import check_known
from fal.app import App

P = ParamSpec("P")
R = TypeVar("R")

_cache: dict[tuple[str, Any], Any] = {}
_cache_lock = threading.RLock()  # one cached function may call another


class IsolatedFunction(Generic[P, R]):
    """A function that runs in an environment of its own; ``serve=True`` makes it ``POST /`` of an app."""

    def __init__(self, function: Callable[P, R], *, serve: bool, options: dict[str, Any]) -> None:
        functools.update_wrapper(self, function)
        self.raw_func = function
        self.serve = serve
        self.options = options

    def on(self, host: Any = None, **overrides: Any) -> IsolatedFunction[P, R]:
        """A copy with other settings."""
        check_known(self.raw_func.__name__, overrides)
        return IsolatedFunction(self.raw_func, serve=self.serve, options={**self.options, **overrides})

    def run_local(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function here, in this process."""
        return self.raw_func(*args, **kwargs)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        raise NotImplementedError(
            f"{self.raw_func.__name__}() cannot be called remotely yet: serve it (@fal.function(serve=True) and "
            f"`fal run FILE.py::{self.raw_func.__name__}`) or call {self.raw_func.__name__}.run_local(...) here"
        )

    def as_app(self) -> type[App]:
        """The app class that serves this function.

        Raises:
            ValueError: the function is not served, or has a setting that does not exist.
        """
        name = self.raw_func.__name__
        if not self.serve:
            raise ValueError(f"{name} has no address: write @fal.function(..., serve=True) to serve it at POST /")
        function = self.raw_func
        setup_function = self.options.get("setup_function")
        body: dict[str, Any] = {
            "__module__": function.__module__,
            "__qualname__": name,
            "app_name": name.replace("_", "-").strip("-").lower(),
        }
        if setup_function is not None:
            body["setup"] = lambda app: setattr(app, "_set_up", setup_function())
        body["run"] = endpoint("/")(_as_method(function, with_setup=setup_function is not None))
        return type(name, (App,), body, **{"machine_type": "XS", "keep_alive": 10, **self.options})


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


def function(
    kind: str = "virtualenv", *, host: Any = None, serve: bool = False, **options: Any
) -> Callable[[Callable[P, R]], IsolatedFunction[P, R]]:
    """Run a function in an environment of its own.

    Args:
        kind: only ``virtualenv``.
        host: accepted for compatibility.
        serve: serve the function as ``POST /``.
        options: the settings of ``fal.App``.

    Raises:
        ValueError: an unknown setting.
    """
    options = {"kind": kind, **options}
    check_known("fal.function", options)

    def wrap(target: Callable[P, R]) -> IsolatedFunction[P, R]:
        return IsolatedFunction(target, serve=serve, options=options)

    return wrap


isolated = function


@overload
def cached(function: Callable[P, R]) -> Callable[P, R]: ...
@overload
def cached() -> Callable[[Callable[P, R]], Callable[P, R]]: ...
def cached(function: Callable[P, R] | None = None) -> Any:
    """Call a function once per process and arguments; later calls get the same value (a loaded model, say)."""
    if function is None:
        return cached

    try:
        source = inspect.getsource(function)
    except (OSError, TypeError):
        source = f"{function.__module__}.{function.__qualname__}"
    identity = hashlib.sha256(source.encode()).hexdigest()

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        key = (identity, functools._make_key(args, kwargs, typed=False))
        with _cache_lock:
            if key not in _cache:
                _cache[key] = function(*args, **kwargs)
            value: R = _cache[key]
            return value

    return wrapper
