"""``AppClient``: an app on a real runner for the length of a ``with`` block, each endpoint a method; for tests.

Owns starting the run, waiting until it is healthy, and calls. Leaves the run itself to ``fal run``, in a process of its
own, which finds the server or starts one and removes the app when it ends.
"""

from __future__ import annotations

import inspect
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, get_type_hints

import httpx

from fal._endpoints import RouteSignature, collect
from fal._platform import trusted_roots
from fal.app import App

_ADDRESS = re.compile(r"Access your exposed service at (\S+)")
#: Lines of the run that an error shows.
_LAST_LINES = 40
#: Seconds for the run to remove its app and, where it started one, its platform.
_END_SECONDS = 60.0


class AppClientError(Exception):
    """A call was refused, or the app did not start. ``status_code`` is 0 where there was no answer."""

    def __init__(self, message: str, status_code: int = 0, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.status_code = status_code
        self.headers = headers or {}


class AppClient:
    """Calls an app by the names of its methods: ``client.run({"prompt": "rhino"})`` posts to the path of ``run``.

    A method takes a dict or a pydantic model (nothing: an empty object) and returns what its annotation says, validated
    where that is a pydantic model.

    Args:
        app: the class. url: where it answers, without a path. timeout: seconds for one call, None: no limit.
        key: an API key, for an app that is not public.
    """

    def __init__(self, app: type[App], url: str, timeout: float | None = None, key: str | None = None) -> None:
        self.cls = app
        self.url = url.rstrip("/")
        headers = {"Authorization": f"Key {key}"} if key else {}
        self._http = httpx.Client(headers=headers, timeout=timeout, trust_env=False, verify=trusted_roots(self.url))
        for name, signature in collect(app).items():
            if not signature.is_websocket:
                setattr(self, name, self._method(getattr(app, name), signature))

    @classmethod
    @contextmanager
    def connect(
        cls,
        app_cls: type[App],
        *,
        health_request_timeout: float = 30,
        startup_timeout: float = 60,
        health_check_interval: float = 0.5,
    ) -> Iterator[AppClient]:
        """Run the app (``fal run``) and yield a client of it once ``/health`` answers; afterwards it is gone.

        Args:
            health_request_timeout: seconds for one look at ``/health``.
            startup_timeout: seconds for the app to become healthy once its environment is built.
            health_check_interval: pause between two looks.

        Raises:
            AppClientError: it did not start; what the run said is in the message.
        """
        with _running(app_cls) as (url, said):
            client = cls(app_cls, url)
            with client._http:
                client._wait_healthy(health_request_timeout, startup_timeout, health_check_interval, said)
                yield client

    def health(self) -> Any:
        """What ``GET /health`` answers.

        Raises:
            AppClientError.
        """
        return _content(_checked(self._http.get(f"{self.url}/health")))

    def _wait_healthy(self, timeout: float, patience: float, pause: float, said: Callable[[], str]) -> None:
        deadline = time.monotonic() + patience
        while (answer := self._health(timeout)) is None or answer.status_code != 200:
            if time.monotonic() > deadline:
                heard = "no answer" if answer is None else f"/health: {answer.status_code} {answer.text[:500]}"
                raise AppClientError(
                    f"{self.cls.__name__} was not healthy within {patience:g} s ({heard}).\n{said()}",
                    0 if answer is None else answer.status_code,
                )
            time.sleep(pause)

    def _health(self, timeout: float) -> httpx.Response | None:
        try:
            return self._http.get(f"{self.url}/health", timeout=timeout)
        except httpx.TransportError:
            return None

    def _method(self, function: Callable[..., Any], signature: RouteSignature) -> Callable[..., Any]:
        result = _annotated(function)

        def call(data: Any = None) -> Any:
            body = data.model_dump(mode="json") if hasattr(data, "model_dump") else {} if data is None else data
            path = "" if signature.path == "/" else signature.path
            try:
                answer = self._http.post(f"{self.url}{path}", json=body)
            except httpx.TransportError as error:
                raise AppClientError(f"POST {path or '/'}: {error or type(error).__name__}") from error
            content = _content(_checked(answer))
            return result.model_validate(content) if hasattr(result, "model_validate") else content

        call.__name__, call.__doc__ = function.__name__, function.__doc__
        return call


def _annotated(function: Callable[..., Any]) -> Any:
    try:
        return get_type_hints(function).get("return")
    except (NameError, TypeError):  # a name that only type checkers import
        return None


def _checked(answer: httpx.Response) -> httpx.Response:
    if answer.is_error:
        path = answer.request.url.path
        raise AppClientError(
            f"{answer.request.method} {path}: {answer.status_code} {answer.text[:2000]}",
            answer.status_code,
            dict(answer.headers),
        )
    return answer


def _content(answer: httpx.Response) -> Any:
    kind = answer.headers.get("content-type", "")
    return answer.json() if kind.split(";")[0].strip() == "application/json" else answer.content


@contextmanager
def _running(app: type[App]) -> Iterator[tuple[str, Callable[[], str]]]:
    """A ``fal run`` of the class: its address, and what it said last."""
    reference = f"{os.path.abspath(inspect.getfile(app))}::{app.__qualname__}"
    process = subprocess.Popen(
        [sys.executable, "-m", "fal", "run", reference, "--auth", "public"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A Ctrl-C of the terminal is ours to pass on: the run must outlive the last call.
        start_new_session=True,
    )
    lines: deque[str] = deque(maxlen=_LAST_LINES)
    address: list[str] = []
    news = threading.Event()
    reader = threading.Thread(target=_read, args=(process, lines, address, news), daemon=True)
    reader.start()
    try:
        news.wait()
        if not address:
            process.wait()
            raise AppClientError(f"{app.__name__} could not be run:\n{''.join(lines)}")
        yield address[0], lambda: "".join(lines)
    finally:
        _end(process)
        reader.join(5)


def _read(process: subprocess.Popen[str], lines: deque[str], address: list[str], news: threading.Event) -> None:
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            lines.append(line)
            if not address and (found := _ADDRESS.search(line)):
                address.append(found[1])
                news.set()
    news.set()


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
