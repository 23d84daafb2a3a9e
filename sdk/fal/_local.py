"""An app served by this very process: no platform, no queue, no environment of its own; for ``fal run --local``.

Owns the HTTP server and what it does in the runner's place: the life cycle, the current request, hints. Leaves routes
to ``fal._routes`` and what the command says to ``fal.cli.local``.
"""

from __future__ import annotations

import os
import socket
import traceback
import uuid
from collections.abc import Awaitable, Callable, Iterable
from importlib import metadata
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from packaging.requirements import InvalidRequirement, Requirement

from fal import ref
from fal._context import RequestContext, set_current_request
from fal._problem import Problem
from fal._routes import build_fastapi, hints_header
from fal.app import App

HOST = "127.0.0.1"

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[Any], Awaitable[None]]


def unmet_requirements(lines: Iterable[str]) -> tuple[list[str], list[str]]:
    """The pip lines whose package this Python does not have, and those that it has in another version.

    Options, and lines that only pip can read, count as met.
    """
    missing, different = [], []
    for line in lines:
        try:
            wanted = Requirement(line.strip())
        except InvalidRequirement:
            continue
        if wanted.marker is not None and not wanted.marker.evaluate():
            continue
        try:
            found = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            missing.append(line.strip())
            continue
        if not wanted.specifier.contains(found, prereleases=True):
            different.append(f"{line.strip()} (here: {found})")
    return missing, different


class SetupFailed(Exception):
    """The app's ``setup()`` raised."""


class LocalApp:
    """One app as an ASGI application."""

    def __init__(self, cls: type[App]) -> None:
        os.environ["FAL_RUNNER_STATE"] = "SETUP"
        os.environ.setdefault("FAL_APP_NAME", cls.app_name or cls.__name__)
        self.instance = cls(_allow_init=True)
        ref.set_current_app(self.instance)
        self.fastapi: FastAPI = build_fastapi(self.instance)
        #: what ``setup()`` raised
        self.failure: BaseException | None = None

    async def set_up(self) -> bool:
        """Call ``setup()``; False when it raised, and ``failure`` says what."""
        self._lifespan = self.instance.lifespan(self.fastapi)
        try:
            await self._lifespan.__aenter__()
        except BaseException as error:  # noqa: BLE001 - setup() is user code and may raise anything
            self.failure = error
            return False
        return True

    async def tear_down(self) -> None:
        """Call ``teardown()``."""
        try:
            await self._lifespan.__aexit__(None, None, None)
        except Exception:  # noqa: BLE001 - user code
            traceback.print_exc()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = str(uuid.uuid4())
        host, port = scope["server"]
        scope["headers"] = [*scope["headers"], (b"x-fal-request-id", request_id.encode())]
        base_url = f"{scope['scheme']}://{host}:{port}"
        set_current_request(RequestContext(request_id, scope["path"], scope["headers"], base_url))

        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                own = [(b"x-fal-request-id", request_id.encode())]
                if hints := self._hints():
                    own.append((b"x-fal-runner-hints", hints.encode("latin-1")))
                message = {**message, "headers": [*message.get("headers", ()), *own]}
            await send(message)

        await self.fastapi(scope, receive, with_headers)

    def _hints(self) -> str | None:
        try:
            return hints_header(self.instance)
        except Exception:  # noqa: BLE001 - user code; a missing hint must not cost the answer
            traceback.print_exc()
            return None

    def asked_to_leave(self) -> None:
        """Call the app's ``handle_exit()``; its failure keeps nobody here."""
        try:
            self.instance.handle_exit()
        except Exception:  # noqa: BLE001 - user code
            traceback.print_exc()


class LocalServer(uvicorn.Server):
    """Serves an app on loopback until a signal.

    Args:
        port: 0 takes any that is free.
        ready: called once with the address, when the app is set up and answers.
        limit: requests after which it ends by itself.
    """

    def __init__(
        self, app: LocalApp, port: int, grace: float, ready: Callable[[str], None], limit: int | None = None
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                host=HOST,
                port=port,
                lifespan="off",
                log_config=None,
                access_log=False,
                limit_max_requests=limit,
                timeout_graceful_shutdown=max(1, int(grace)),
            )
        )
        self._app = app
        self._ready = ready
        self._address = ""

    def serve_until_signal(self) -> None:
        """Set the app up, answer, and end in good order.

        Raises:
            Problem: the port is taken.
        SetupFailed: its cause is what ``setup()`` raised.
        """
        with _listening(self.config.port) as listener:
            self._address = f"http://{HOST}:{listener.getsockname()[1]}"
            try:
                self.run(sockets=[listener])
            except KeyboardInterrupt:
                pass  # uvicorn passes on the signal that it has already obeyed
        if self._app.failure is not None:
            raise SetupFailed from self._app.failure

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        if not await self._app.set_up():
            self.should_exit = True
            return
        await super().startup(sockets)
        self._ready(self._address)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        await self._app.tear_down()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if not self.should_exit:
            self._app.asked_to_leave()
        super().handle_exit(sig, frame)


def _listening(port: int) -> socket.socket:
    """The port, taken before anything slow begins."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
    except OSError as error:
        listener.close()
        raise Problem(
            f"Port {port} of {HOST} cannot be used.",
            why=str(error),
            next_step="give another with --exposed-port, or 0 for any that is free.",
        ) from error
    return listener
