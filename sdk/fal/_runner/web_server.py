"""The web server that a function starts, beside the runner in its process: its port, its start, its end.

The function has the main thread, where servers install their signal handlers; the runner's loop has another one. Each
worker has a port of its own in ``PORT``: two on one host would otherwise want the same. Leaves passing requests on to
``port_proxy``.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from fal._runner.errors import ServerEnded
from fal._runner.listeners import is_ours

#: Seconds between looks whether the port is open.
_LOOK_SECONDS = 0.05
_HOSTS = ("127.0.0.1", "::1")


class WebServer:
    """The server of one function.

    Args:
        name: the function's.
        exposed_port: the port that its definition names.
    """

    def __init__(self, name: str, exposed_port: int) -> None:
        self.name = name
        self._exposed_port = exposed_port
        self._begin: SimpleQueue[Callable[[], Any] | None] = SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._begun = self._returned = False
        self.port = _free_port()
        self._taken = _answers(exposed_port) is not None
        self._ended: asyncio.Future[BaseException | None] | None = None

    def prepare(self) -> None:
        """Before user code is imported: tell it its port, and lead what binds the exposed one there."""
        os.environ["PORT"] = str(self.port)
        _lead(self._exposed_port, self.port)

    # --- main thread --------------------------------------------------------------------------------------------------

    def run_beside(self, live: Callable[[], int], leave: Callable[[int], None]) -> int:
        """Call the function here and ``live`` in another thread; the latter's exit code.

        Args:
            leave: ends the process, when ``live`` has returned and the function has not.
        """
        codes: list[int] = []

        def beside() -> None:
            codes.append(live())
            if self._begun and not self._returned:
                leave(codes[0])  # nobody can call the main thread back from user code
            self._begin.put(None)

        thread = threading.Thread(target=beside, name="fal-runner")
        thread.start()
        if (function := self._begin.get()) is not None:
            self._call(function)
        thread.join()
        return codes[0]

    def _call(self, function: Callable[[], Any]) -> None:
        error: BaseException | None = None
        try:
            value = function()
            if asyncio.iscoroutine(value):
                asyncio.run(value)
        except BaseException as raised:  # noqa: BLE001 - user code may raise anything, SystemExit included
            error = raised
        loop, ended = self._loop, self._ended
        assert loop is not None
        assert ended is not None
        try:
            loop.call_soon_threadsafe(lambda: None if ended.done() else ended.set_result(error))
        except RuntimeError:
            pass  # the loop is closed: the runner is leaving
        self._returned = True

    # --- the runner's loop --------------------------------------------------------------------------------------------

    def start(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        """Have the main thread call the function."""
        self._loop = asyncio.get_running_loop()
        self._ended = self._loop.create_future()
        self._begun = True
        self._begin.put(lambda: function(*arguments))

    async def opened(self, stop: asyncio.Event) -> tuple[str, int] | None:
        """Where the server listens, once it does; None when ``stop`` was set first.

        Raises:
            ServerEnded: the function ended first; its cause is what it raised.
        """
        assert self._ended is not None
        stopping = asyncio.ensure_future(stop.wait())
        try:
            while not stopping.done():
                if (host := await asyncio.to_thread(_answers, self.port)) is not None:
                    return host, self.port
                if not self._taken and (host := await asyncio.to_thread(self._own_answer)) is not None:
                    return host, self._exposed_port
                await asyncio.wait((self._ended, stopping), timeout=_LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                if self._ended.done() and not stopping.done():
                    error = self._ended.result()
                    raise ServerEnded(self._why_it_did_not_open(error)) from error
            return None
        finally:
            stopping.cancel()

    async def over(self, stop: asyncio.Event) -> str | None:
        """Wait for ``stop``; why there is no server any more when the function has ended before."""
        assert self._ended is not None
        stopping = asyncio.ensure_future(stop.wait())
        try:
            await asyncio.wait((self._ended, stopping), return_when=asyncio.FIRST_COMPLETED)
            if stopping.done():
                return None
            error = self._ended.result()
        finally:
            stopping.cancel()
        how = "returned" if error is None else f"raised {type(error).__name__}: {error}"
        return f"{self.name}() {how}, and its web server is gone"

    def _own_answer(self) -> str | None:
        """Whether the exposed port is open by a process of ours: another worker's server may have been faster."""
        host = _answers(self._exposed_port)
        if host is not None and not is_ours(self._exposed_port):
            self._taken = True
            return None
        return host

    def _why_it_did_not_open(self, error: BaseException | None) -> str:
        if error is None:
            how = f"{self.name}() returned before anything listened on port {self._exposed_port}"
        else:
            how = f"{self.name}() raised {type(error).__name__}: {error}"
        if self._taken or (isinstance(error, OSError) and error.errno == errno.EADDRINUSE):
            how += (
                f". Port {self._exposed_port} is taken on this host, by another worker perhaps: let the server listen "
                'on int(os.environ["PORT"]), which is each worker\'s own'
            )
        return how


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def _answers(port: int) -> str | None:
    """The loopback address on which something takes connections of that port."""
    for host in _HOSTS:
        try:
            socket.create_connection((host, port), timeout=1.0).close()
        except OSError:
            continue
        return host
    return None


def _lead(exposed_port: int, port: int) -> None:
    """A bind of the exposed port, in this process and its forks, takes the worker's own instead."""
    original = socket.socket.bind

    def bind(self: socket.socket, address: Any, /) -> None:
        internet = self.family in (socket.AF_INET, socket.AF_INET6)
        if internet and isinstance(address, tuple) and len(address) > 1 and address[1] == exposed_port:
            address = (address[0], port, *address[2:])
        original(self, address)

    socket.socket.bind = bind  # type: ignore[assignment, method-assign]
