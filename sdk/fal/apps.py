"""Calls of apps from Python: through the queue (``submit``, ``run``), streamed, and over websockets.

The server is the one that the ``fal`` command talks to. Leaves the connection to ``fal._server``; an app that calls
another one needs ``httpx`` (and for ``ws`` ``websockets``) in its requirements, and ``FAL_KEY`` among its secrets.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from fal._context import current_request
from fal._needed import needed
from fal._problem import Problem

if TYPE_CHECKING:
    import httpx

    from fal._server import ControlApi

__all__ = ["Completed", "InProgress", "Queued", "RequestHandle", "run", "stream", "submit", "ws"]

Arguments = dict[str, Any]
#: Where a server and its key come from; another value makes another connection.
_SOURCES = ("KEEPWARM_URL", "KEEPWARM_DATA", "FAL_KEY", "FAL_KEY_ID", "FAL_KEY_SECRET", "FAL_PROFILE", "HOME")
_OPEN_SECONDS = 90.0


@dataclass(frozen=True)
class _Status:
    """What a request is doing."""


@dataclass(frozen=True)
class Queued(_Status):
    """It waits; ``position`` requests are before it."""

    position: int


@dataclass(frozen=True)
class InProgress(_Status):
    """A runner has it. ``logs``: its lines so far, None unless they were asked for."""

    logs: list[dict[str, Any]] | None = None


@dataclass(frozen=True)
class Completed(_Status):
    """It is over: the result can be had, or is an error, which ``error`` says and ``error_type`` names."""

    logs: list[dict[str, Any]] | None = None
    error: str | None = None
    error_type: str | None = None


@dataclass
class RequestHandle:
    """A request in the queue.

    Args:
        app_id: ``owner/app``; a path behind it is left out, since requests are the app's.
        request_id: as ``submit`` or a client was told it.

    Raises (every method):
        httpx.HTTPStatusError: the platform refused, or ``get`` and ``fetch_result``: the app answered with an error.
        Problem: no platform answers.
    """

    app_id: str
    request_id: str
    _api: ControlApi = field(default_factory=lambda: _connection(), repr=False, compare=False)

    def __post_init__(self) -> None:
        self.app_id = "/".join(_app_id(self._api, self.app_id).split("/")[:2])

    def status(self, *, logs: bool = False) -> _Status:
        """What it is doing now, with its log if ``logs``."""
        answer = _checked(self._api, "GET", self._path("/status/"), params={"logs": int(logs)}).json()
        match answer["status"]:
            case "IN_QUEUE":
                return Queued(answer["queue_position"])
            case "IN_PROGRESS":
                return InProgress(answer.get("logs"))
            case _:
                return Completed(answer.get("logs"), answer.get("error"), answer.get("error_type"))

    def iter_events(self, *, logs: bool = False, _refresh_rate: float = 0.1) -> Iterator[_Status]:
        """Its status again and again until it is over, the last one too; ``_refresh_rate``: seconds between looks."""
        while True:
            status = self.status(logs=logs)
            yield status
            if isinstance(status, Completed):
                return
            time.sleep(_refresh_rate)

    def fetch_result(self) -> Any:
        """Its answer; refused while it is not over."""
        return _content(_checked(self._api, "GET", self._path("/")))

    def get(self) -> Any:
        """Wait until it is over, then its answer."""
        for _ in self.iter_events():
            pass
        return self.fetch_result()

    def cancel(self) -> None:
        """Drop it, or tell the app to stop; refused when it is over."""
        _checked(self._api, "PUT", self._path("/cancel"))

    def _path(self, suffix: str) -> str:
        return f"/queue/{quote(self.app_id)}/requests/{quote(self.request_id, safe='')}{suffix}"


def submit(app_id: str, arguments: Arguments, *, path: str = "") -> RequestHandle:
    """Put a request into the queue of an app.

    Args:
        app_id: ``owner/app``, with a path behind it or not; without an owner, one of your own apps.
        arguments: the JSON body.
        path: of the endpoint, such as ``/upscale``.

    Raises:
        httpx.HTTPStatusError: refused; its text has the platform's reason.
    """
    api = _connection()
    app = _app_id(api, app_id)
    answer = _checked(api, "POST", f"/queue/{quote(app)}{_route(path)}", json=arguments).json()
    return RequestHandle(app, answer["request_id"], api)


def run(app_id: str, arguments: Arguments, *, path: str = "") -> Any:
    """Call an app through its queue and wait for the answer; as ``submit``."""
    return submit(app_id, arguments, path=path).get()


def stream(app_id: str, arguments: Arguments, *, path: str = "") -> Iterator[str | bytes]:
    """Call an app directly and yield its answer as it comes: the lines of an event stream, else pieces of the body."""
    api = _connection()
    address = f"/{quote(_app_id(api, app_id))}{_route(path)}"
    # An event may be minutes in coming; the platform's own limit for a request is the one that counts.
    with api.stream("POST", address, allow=range(400, 600), json=arguments, timeout=None) as response:
        if response.is_error:
            response.read()
            raise _refused(response)
        if response.headers.get("content-type", "").startswith("text/event-stream"):
            yield from filter(None, response.iter_lines())
        else:
            yield from response.iter_bytes()


@dataclass
class _WebSocketCalls:
    """An app's HTTP endpoint over one websocket: a call at a time."""

    _socket: Any

    def run(self, arguments: Arguments) -> bytes:
        """One call; its whole body."""
        self.send(arguments)
        return self.recv()

    def send(self, arguments: Arguments) -> None:
        """Begin a call."""
        self._socket.send(json.dumps(arguments))

    def recv(self) -> bytes:
        """The body of the next answer."""
        return b"".join(part.encode() if isinstance(part, str) else part for part in self.stream())

    def stream(self) -> Iterator[str | bytes]:
        """The next answer piece by piece.

        Raises:
            ValueError: the platform said something else.
        """
        if (start := _mark(self._socket.recv())) is None or start["type"] != "start":
            raise ValueError("an answer should begin with a start message")
        while (end := _mark(piece := self._socket.recv())) is None:
            yield piece
        if end["type"] != "end" or end["request_id"] != start["request_id"]:
            raise ValueError("an answer should end with the end message of its own request")


@dataclass
class _RealtimeConnection:
    """A session of an app's ``@fal.realtime`` method."""

    _socket: Any
    _encode: Callable[[Any], bytes]
    _decode: Callable[[bytes], Any]

    def run(self, arguments: Arguments) -> Any:
        """One input, and the output that comes next."""
        self.send(arguments)
        return self.recv()

    def send(self, arguments: Arguments) -> None:
        """One input."""
        self._socket.send(self._encode(arguments))

    def recv(self) -> Any:
        """The next output.

        Raises:
            ValueError: the session ended with an error, or the input was refused.
        """
        while isinstance(frame := self._socket.recv(), str):
            said = json.loads(frame)
            if isinstance(said, dict) and said.get("type") == "x-fal-error":
                raise ValueError(f"{said.get('error')}: {said.get('reason')}")
        return self._decode(frame)


@contextmanager
def ws(app_id: str, *, path: str = "") -> Iterator[_WebSocketCalls]:
    """An app's HTTP endpoint over a websocket, for many calls one after the other."""
    with _socket("/ws", app_id, path) as socket:
        yield _WebSocketCalls(socket)


@contextmanager
def _connect(
    app_id: str,
    *,
    path: str = "/realtime",
    encode_message: Callable[[Any], bytes] | None = None,
    decode_message: Callable[[bytes], Any] | None = None,
) -> Iterator[_RealtimeConnection]:
    """A session of a realtime endpoint; frames are msgpack unless the two functions say otherwise."""
    import msgpack

    with _socket("", app_id, path) as socket:
        yield _RealtimeConnection(socket, encode_message or msgpack.packb, decode_message or msgpack.unpackb)


@contextmanager
def _socket(service: str, app_id: str, path: str) -> Iterator[Any]:
    api = _connection()
    with api.socket(f"{service}/{quote(_app_id(api, app_id))}{_route(path)}", open_seconds=_OPEN_SECONDS) as socket:
        yield socket


def _mark(frame: str | bytes) -> dict[str, Any] | None:
    """A ``start`` or ``end`` message; None for a piece of an answer."""
    if not isinstance(frame, str):
        return None
    try:
        said = json.loads(frame)
    except ValueError:
        return None
    return said if isinstance(said, dict) and {"type", "request_id"} <= said.keys() else None


def _route(path: str) -> str:
    return f"/{quote(path.removeprefix('/'))}" if path.strip("/") else ""


def _app_id(api: ControlApi, given: str) -> str:
    """``owner/app[/path]``; a name without an owner is one of the caller's apps, else the old form ``owner-app``."""
    name = given.strip("/")
    if name.startswith("workflows/"):
        raise ValueError(f"{given!r} is a workflow of fal's cloud; call apps of this platform one after the other")
    if not name:
        raise ValueError("the id of an app is empty; write owner/app")
    if "/" in name:
        return name
    own = f"{api.owner()}/{name}" if "-" in name else ""
    if own and api.request("GET", f"/api/v1/apps/{quote(own)}", allow=(403, 404)).is_error:
        return name.replace("-", "/", 1)
    return own or f"{api.owner()}/{name}"


def _connection() -> ControlApi:
    """The connection to the platform, kept while the settings stay as they are.

    Raises:
        Problem: there is no platform.
    """
    request = current_request()
    around = request.base_url if request is not None else ""
    return _connection_of((around, *(os.environ.get(name, "") for name in _SOURCES)))


@lru_cache(maxsize=8)
def _connection_of(sources: tuple[str, ...]) -> ControlApi:
    needed("httpx", "fal.apps", "httpx")
    from fal._platform import find_server
    from fal._server import ControlApi

    return ControlApi(find_server())


def _checked(api: ControlApi, method: str, path: str, **options: Any) -> httpx.Response:
    try:
        response = api.request(method, path, allow=range(400, 600), **options)
    except Problem:
        _connection_of.cache_clear()  # a local platform that was started again has another address
        raise
    if response.is_error:
        raise _refused(response)
    return response


def _refused(response: httpx.Response) -> httpx.HTTPStatusError:
    import httpx

    from fal._server import detail_of

    said = f"{response.status_code}: {detail_of(response)}"
    return httpx.HTTPStatusError(said, request=response.request, response=response)


def _content(response: httpx.Response) -> Any:
    kind = response.headers.get("content-type", "").split(";")[0].strip()
    return response.json() if kind == "application/json" else response.content
