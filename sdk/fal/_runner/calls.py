"""The app that a runner makes of a function which is called from its user's own machine.

Owns the one route: bytes of a call in, bytes of its value or exception out. Leaves the bytes to ``fal._calls``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from fal._calls import CONTENT_TYPE, pack_error, pack_value, unpack_call
from fal._carried_classes import Classes
from fal._carried_values import Codec
from fal._endpoints import endpoint
from fal._function_apps import app_name as name_of_app
from fal._functions import IsolatedFunction
from fal._runner.errors import LoadError
from fal._runner.loading import unread
from fal._runner.output import user_frames
from fal._threads import run_in_thread
from fal.app import App
from fal.exceptions import FalSerializationError
from fal.exceptions._gpu import classify


def calls_app(module: ModuleType, name: str, setup_name: str, bundle_dir: str, called: str = "") -> type[App]:
    """The app for calls of the function ``name`` of a loaded file.

    Args:
        setup_name: the function of that file whose value it gets first; empty: the one of its own definition, if any.
        called: the function whose call ended the reading of the file.

    Raises:
        LoadError: there is no such function.
    """
    target = vars(module).get(name)
    if target is None and called:
        raise LoadError(unread(module, name, called))
    own_setup = target.options.get("setup_function") if isinstance(target, IsolatedFunction) else None
    function = target.raw_func if isinstance(target, IsolatedFunction) else target
    if not callable(function):
        raise LoadError(f"{name} is not a function of {Path(module.__file__ or '').name}")
    set_up = _plain(vars(module).get(setup_name)) if setup_name else own_setup
    if setup_name and set_up is None:
        raise LoadError(f"{setup_name} (setup_function) is not a function of {Path(module.__file__ or '').name}")
    roots = [Path(bundle_dir), Path(module.__file__ or bundle_dir).parent]
    answerer = _Answerer(function, name, Codec(Classes(module, roots)))

    class Calls(App):
        app_name = name_of_app(name)

        async def setup(self) -> None:
            if set_up is not None:
                value = set_up()
                answerer.first = (await value if inspect.isawaitable(value) else value,)

        @endpoint("/")
        async def call(self, request: Request) -> Response:
            return await answerer.answer(request)

    return Calls


def _plain(value: Any) -> Callable[..., Any] | None:
    value = value.raw_func if isinstance(value, IsolatedFunction) else value
    return value if callable(value) else None


class _Answerer:
    """Calls the function and makes bytes of what comes of it. ``first``: what it gets before the caller's arguments."""

    def __init__(self, function: Callable[..., Any], name: str, codec: Codec) -> None:
        self.first: tuple[Any, ...] = ()
        self._function = function
        self._name = name
        self._codec = codec
        self._runs_on_loop = inspect.iscoroutinefunction(inspect.unwrap(function))

    async def answer(self, request: Request) -> Response:
        body = await request.body()
        if self._runs_on_loop:
            return await self._answer_on_loop(request, body)
        return await run_in_thread(self._answer, request, body)  # type: ignore[no-any-return]

    def _answer(self, request: Request, body: bytes) -> Response:
        try:
            positional, named = unpack_call(self._codec, self._name, body)
        except FalSerializationError as error:
            return _response(422, pack_error(self._codec, error, None))
        try:
            value = self._function(*self.first, *positional, **named)
            return _response(200, pack_value(self._codec, self._name, value))
        except BaseException as error:  # noqa: BLE001 - it belongs to the caller, SystemExit included
            return self._failed(request, error)

    async def _answer_on_loop(self, request: Request, body: bytes) -> Response:
        try:
            positional, named = unpack_call(self._codec, self._name, body)
        except FalSerializationError as error:
            return _response(422, pack_error(self._codec, error, None))
        try:
            value = await self._function(*self.first, *positional, **named)
            return _response(200, pack_value(self._codec, self._name, value))
        except (Exception, SystemExit, KeyboardInterrupt) as error:  # noqa: BLE001 - it belongs to the caller
            return self._failed(request, error)

    def _failed(self, request: Request, error: BaseException) -> Response:
        if (noted := request.scope.get("fal.failed")) is not None:
            noted(error)
        # 503 asks the platform for a fresh runner, as for any app whose GPU has failed.
        status = 503 if classify(error) is not None else 500
        return _response(status, pack_error(self._codec, error, user_frames(error)))


def _response(status: int, body: bytes) -> Response:
    return Response(body, status, media_type=CONTENT_TYPE)
