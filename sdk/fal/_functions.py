"""``fal.function`` and ``fal.cached``: single functions instead of classes.

Owns the declaration, and what may be done with a function where. Leaves apps made of functions to
``fal._function_apps`` and ``fal._runner.calls``, and calls to ``fal._remote_calls``.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, overload

from fal._settings import check_known

if TYPE_CHECKING:
    from fal._spawn_info import SpawnInfo
    from fal.app import App

P = ParamSpec("P")
R = TypeVar("R")

_cache: dict[tuple[Any, Any], Any] = {}
_cache_lock = threading.RLock()  # one cached function may call another


#: The thread that reads a user's file to find what it defines.
_reader: int | None = None


class CalledWhileRead(BaseException):
    """A file calls one of its functions at its top level, where it is only read for what it defines.

    Not an Exception: whoever wrote the file did not mean to handle it.
    """

    def __init__(self, name: str) -> None:
        super().__init__(f"{name}() is called at the top level of the file")
        self.name = name


@contextmanager
def reading() -> Iterator[None]:
    """For reading a user's file elsewhere than where it is a script: a call of a function ends the reading.

    Raises:
        CalledWhileRead: what is defined up to there is defined.
    """
    global _reader
    before, _reader = _reader, threading.get_ident()
    try:
        yield
    finally:
        _reader = before


class IsolatedFunction(Generic[P, R]):
    """A function that runs on the platform, in an environment of its own.

    Called, it runs there and returns its value; with ``serve=True`` it is ``POST /`` of an app, with ``exposed_port``
    the web server that it starts is the app.
    """

    def __init__(self, function: Callable[P, R], *, serve: bool, options: dict[str, Any]) -> None:
        functools.update_wrapper(self, function)
        self.raw_func = function
        self.serve = serve
        self.options = options

    def on(self, host: Any = None, *, serve: bool | None = None, **overrides: Any) -> IsolatedFunction[P, R]:
        """A copy with other settings.

        Raises:
            ValueError: an unknown setting.
        """
        check_known(self.raw_func.__name__, overrides)
        return IsolatedFunction(
            self.raw_func, serve=self.serve if serve is None else serve, options={**self.options, **overrides}
        )

    def run_local(self, *args: Any, **kwargs: Any) -> R:
        """Call the function here, in this process; its ``setup_function`` is called first, once per process."""
        setup_function = self.options.get("setup_function")
        if setup_function is None:
            return self.raw_func(*args, **kwargs)
        first = _set_up(setup_function)
        return self.raw_func(first, *args, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> R:
        """Run the function on the platform and return its value.

        What it prints appears on standard error. An exception is raised here as it was raised there, with the remote
        traceback as its cause.

        Raises:
            FalSerializationError: an argument or the value cannot travel.
            FalServerlessError: the platform could not run it.
            UserFunctionException: it raised an exception whose class is not here.
        """
        value: R = self._remote().call(self, args, kwargs)
        return value

    def submit(self, *args: Any, **kwargs: Any) -> Future[R]:
        """The same without waiting: up to 64 calls of a process run at once, others wait for one of those."""
        future: Future[R] = self._remote().submit(self, args, kwargs)
        return future

    def spawn(self, *args: Any, **kwargs: Any) -> SpawnInfo:
        """As ``submit``, with the app that runs it and the lines that it prints at hand."""
        info: SpawnInfo = self._remote().spawn(self, args, kwargs)
        return info

    def _remote(self) -> Any:
        name = self.raw_func.__name__
        if (port := self.options.get("exposed_port")) is not None:
            raise TypeError(
                f"{name}() starts a web server on port {port} and returns no value: `fal run FILE.py::{name}` gives it "
                f"an address, {name}.run_local() starts it here"
            )
        if _reader == threading.get_ident():
            raise CalledWhileRead(name)
        if os.environ.get("IS_ISOLATE_AGENT"):
            raise RuntimeError(
                f"{name}() is called on a runner, which has no platform to call: {name}.run_local(...) runs it here"
            )
        return importlib.import_module("fal._remote_calls")  # only there: runners have no HTTP client

    @property
    def is_app(self) -> bool:
        """Whether it has an address: ``fal run`` and ``fal deploy`` take it."""
        return self.serve or self.options.get("exposed_port") is not None

    def as_app(self) -> type[App]:
        """The app class that serves this function.

        Raises:
            ValueError: the function is not served, or has a setting that does not exist.
        """
        from fal._function_apps import served_app

        return served_app(self)


def _set_up(setup_function: Callable[[], Any]) -> Any:
    key = ("setup", setup_function)
    with _cache_lock:
        if key not in _cache:
            _cache[key] = setup_function()
        return _cache[key]


def function(
    kind: str = "virtualenv", *, host: Any = None, serve: bool = False, **options: Any
) -> Callable[[Callable[P, R]], IsolatedFunction[P, R]]:
    """Run a function on the platform, in an environment of its own.

    Args:
        kind: only ``virtualenv``.
        host: accepted for compatibility.
        serve: serve the function as ``POST /``.
        options: the settings of ``fal.App`` (``machine_type`` is XS and ``keep_alive`` 10 s unless given);
            ``setup_function``: called once per runner, its value is the function's first argument; ``exposed_port``:
            the function starts a web server on that port, which is the app.

    Raises:
        ValueError: an unknown setting.
        TypeError: used without parentheses.
    """
    if callable(kind):
        raise TypeError("fal.function needs its parentheses: write @fal.function()")
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
