"""The life of a runner: load the app, set it up, serve, stop. One object, read from top to bottom.

Owns stages, readiness, the order of stopping and exit codes. Leaves frames to ``channel`` and answers to ``serving``.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any

from fal import _context, ref
from fal._runner import cuda_on_cpu, own_key
from fal._runner.channel import Channel
from fal._runner.errors import LoadError, ServerEnded
from fal._runner.files import PlatformFiles
from fal._runner.lessons import Lessons
from fal._runner.loop import new_loop
from fal._runner.output import Output, user_frames
from fal._runner.protocol import Headers, Message, Ready, Stage, Start, StartFailed

if TYPE_CHECKING:
    from fastapi import FastAPI

    from fal._runner.port_proxy import PortProxy
    from fal._runner.serving import Serving
    from fal._runner.web_server import WebServer
    from fal.app import App

EXIT_OK = 0
EXIT_SERVER_ENDED = 1
EXIT_START_FAILED = 3


class Life:
    """One app in one process.

    Args:
        start: what to load.
        channel: to the supervisor; its messages must be given to ``receive`` and its loss to ``lost``.
        output: the streams of user code.
        leave: ends the process with an exit code, from whatever thread.
        born: when a forked process was told what to be, on the monotonic clock; None: with the process itself.
    """

    def __init__(
        self,
        start: Start,
        channel: Channel,
        output: Output,
        leave: Callable[[int], None],
        born: float | None = None,
    ) -> None:
        self._start = start
        self._born = born
        self._lessons = Lessons(start.bundle_dir)
        self._channel = channel
        self._output = output
        self._files = PlatformFiles(channel, start.files_dir, start.storage_hosts)
        self._instance: App | None = None
        self._serving: Serving | None = None
        self._stop = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = False
        self._orphaned = False
        self._gives_hints = False
        self._server: WebServer | None = None
        self._leave = leave

    # --- start --------------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Everything from here to the end; returns the exit code."""
        _announce(self._start)
        _context.set_runner(self._files)
        try:
            import fal._routes  # noqa: F401 - fastapi, before the bundle is on the path and before the user's file
        except ImportError as error:
            return self._failed("import", error)
        booted = seconds_since_process_start() if self._born is None else time.monotonic() - self._born
        self._channel.send(Stage("boot", booted))
        began = time.perf_counter()
        try:
            own_key.stay_here(self._start.app)
            if self._start.cpu_fallback_for:
                cuda_on_cpu.install_on_import(self._start.cpu_fallback_for, self._output.warn)
            if self._start.exposed_port:
                from fal._runner.web_server import WebServer

                self._server = WebServer(self._start.class_name, self._start.exposed_port)
                self._server.prepare()
            self._instance, app = self._load()
        except BaseException as error:  # noqa: BLE001 - a user's file may raise anything, SystemExit included
            return self._failed("import", error)
        self._channel.send(Stage("import", time.perf_counter() - began))
        # Not asyncio.run(): it would wait for executor threads of user code that may never end.
        loop = new_loop()
        asyncio.set_event_loop(loop)
        if self._server is None:
            return loop.run_until_complete(self._live(app))
        # Servers want the main thread, for their signal handlers; the loop gets another one.
        self._loop = loop
        self._take_signals()
        return self._server.run_beside(lambda: loop.run_until_complete(self._live(app)), self._leave)

    def _load(self) -> tuple[App, Any]:
        from fal._function_apps import WebServerApp
        from fal._routes import build_fastapi
        from fal._runner.loading import find_app, load_module, prepare_path

        start = self._start
        prepare_path(start.bundle_dir, start.entry_file)
        module, called = load_module(start.bundle_dir, start.entry_file)
        if start.for_calls:
            from fal._runner.calls import calls_app

            cls = calls_app(module, start.class_name, start.setup_function, start.bundle_dir, called)
        else:
            cls = find_app(module, start.class_name, called)
        instance = cls(_allow_init=True)
        ref.set_current_app(instance)
        if self._server is None or not isinstance(instance, WebServerApp):
            return instance, build_fastapi(instance)
        from fal._runner.port_proxy import PortProxy

        return instance, PortProxy(start.class_name)

    def _failed(self, stage: str, error: BaseException) -> int:
        told = (error.__cause__ or error) if isinstance(error, ServerEnded) else error
        text = "".join(traceback.format_exception(type(told), told, user_frames(told)))
        self._output.finish()
        self._channel.send(StartFailed(stage, _summary(error), text))
        return EXIT_START_FAILED

    # --- serve --------------------------------------------------------------------------------------------------------

    async def _live(self, app: Any) -> int:
        assert self._instance is not None
        self._loop = asyncio.get_running_loop()
        began = time.perf_counter()
        lifespan = self._instance.lifespan(app)
        try:
            await lifespan.__aenter__()
        except BaseException as error:  # noqa: BLE001 - setup() is user code and may raise anything
            return self._failed("setup", error)
        self._channel.send(Stage("setup", time.perf_counter() - began))
        if self._server is not None:
            return await self._live_with_server(self._server, app, lifespan)
        self._take_signals()  # whoever has heard Ready may ask it to leave
        self._serve(app, _openapi_text(app, self._output))
        await self._stop.wait()
        return await self._end(lifespan)

    async def _live_with_server(self, server: WebServer, app: PortProxy, lifespan: Any) -> int:
        """Serve once the app's own web server does, and no longer than that."""
        from fal._function_apps import WebServerApp

        assert isinstance(self._instance, WebServerApp)
        server.start(type(self._instance).server, self._instance.first)
        try:
            place = await server.opened(self._stop)
        except ServerEnded as error:
            return self._failed("web server", error)
        if place is not None:
            app.place = place
            self._serve(app, json.dumps(await app.openapi() or _no_openapi(self._start.class_name, "unknown")))
            if (why := await server.over(self._stop)) is not None:
                app.over.set()
                return await self._end_without_server(why, lifespan)
            return await self._end(lifespan)
        await _leave_lifespan(lifespan, self._output)
        return EXIT_OK

    async def _end_without_server(self, why: str, lifespan: Any) -> int:
        """The function has ended by itself. What still runs ends with this process, as with one that has crashed."""
        self._output.error(f"{why}. The runner ends with it.")
        await _leave_lifespan(lifespan, self._output)
        self._output.finish()
        return EXIT_SERVER_ENDED

    def _serve(self, app: Any, openapi: str) -> None:
        from fal._routes import plain_routes
        from fal._runner.serving import Serving
        from fal.app import App

        assert self._loop is not None
        assert self._instance is not None
        self._gives_hints = type(self._instance).provide_hints is not App.provide_hints
        self._serving = Serving(
            app,
            self._channel,
            self._output,
            self._extra_headers,
            frozenset(path for route in app.routes if (path := getattr(route, "path", None))),
            self._saw_base_url,
            plain_routes(app),
            from_any_thread=not self._gives_hints,  # hints are user code that expects the loop
        )
        gc.collect()
        gc.freeze()  # what setup() made stays: no later collection needs to look through it
        ready = Ready(openapi, self._instance.get_endpoints(), self._device())
        self._channel.attach(self._loop)
        self._channel.send(ready)
        self._channel.send(self._lessons.all())

    def receive(self, message: Message) -> None:
        """One message from the supervisor, on the loop."""
        if self._serving is not None:
            self._serving.receive(message)

    def _saw_base_url(self, base_url: str) -> None:
        if base_url:  # the platform's own health checks come from nowhere
            self._files.latest_base_url = base_url

    def _extra_headers(self) -> Headers:
        headers: Headers = []
        if self._start.cpu_fallback_for:
            headers.append((b"x-keepwarm-device", self._device().encode("latin-1", "replace")))
        if self._gives_hints:
            headers += self._hints()
        return headers

    def _hints(self) -> Headers:
        from fal._routes import hints_header

        assert self._instance is not None
        try:
            hints = hints_header(self._instance)
        except Exception as error:  # noqa: BLE001 - user code; a missing hint must not cost the answer
            self._output.exception(error)
            return []
        return [(b"x-fal-runner-hints", hints.encode("latin-1"))] if hints else []

    def _device(self) -> str:
        if self._start.cpu_fallback_for:
            return f"cpu (standing in for {self._start.cpu_fallback_for})"
        return "cuda" if self._start.machine_type.startswith("GPU") else "cpu"

    # --- stop ---------------------------------------------------------------------------------------------------------

    def _take_signals(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        assert self._loop is not None
        if self._server is None:
            self._wake_for_signals(self._loop)

    def _wake_for_signals(self, loop: asyncio.AbstractEventLoop) -> None:
        """A signal between the loop's last bytecode and its wait for news runs no handler until there is news."""
        heard, told = socket.socketpair()
        for end in (heard, told):
            end.setblocking(False)
        before = signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
        if before != -1:  # the user's own kind of loop, uvloop say, has seen to it
            signal.set_wakeup_fd(before)
            heard.close()
            told.close()
            return
        self._signal_sockets = (heard, told)
        loop.add_reader(heard.fileno(), heard.recv, 4096)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        # A plain signal handler runs between two bytecodes of the main thread, so handle_exit() reaches an app even
        # while one of its async handlers holds the event loop.
        if self._stopping:
            return
        self._stopping = True
        assert self._instance is not None
        try:
            self._instance.handle_exit()
        except Exception as error:  # noqa: BLE001 - user code; its failure must not keep the runner alive
            self._output.exception(error)
        self._wake()

    def lost(self) -> None:
        """The supervisor has gone. Nobody waits for answers; end at once."""
        self._orphaned = True
        self._wake()

    def _wake(self) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)

    async def _end(self, lifespan: Any) -> int:
        assert self._serving is not None
        if self._orphaned:
            self._serving.abandon()
        await self._serving.wait_until_idle()
        self._channel.detach()
        await _leave_lifespan(lifespan, self._output)
        self._output.finish()
        return EXIT_OK


async def _leave_lifespan(lifespan: Any, output: Output) -> None:
    try:
        await lifespan.__aexit__(None, None, None)
    except Exception as error:  # noqa: BLE001 - teardown() is user code
        output.exception(error)


def _summary(error: BaseException) -> str:
    """One line: what went wrong and, where it is known, what to do."""
    text = (str(error).strip().splitlines() or [""])[0]
    if isinstance(error, LoadError | ServerEnded):
        return text
    if isinstance(error, ModuleNotFoundError) and error.name:
        text += f" (add the package that provides it to requirements, or {error.name!r} to local_python_modules)"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _announce(start: Start) -> None:
    os.environ["IS_ISOLATE_AGENT"] = "1"
    os.environ["FAL_RUNNER_STATE"] = "SETUP"
    os.environ.setdefault("FAL_APP_NAME", start.app.rpartition("/")[2])
    os.environ.setdefault("FAL_JOB_ID", start.worker_id)
    os.environ.update(start.secrets)


def _openapi_text(app: FastAPI, output: Output) -> str:
    from pydantic.errors import PydanticUserError

    from fal._routes import openapi_of

    try:
        document = openapi_of(app)
    except PydanticUserError as error:
        output.error(f"the app has no OpenAPI document: {error}")
        document = _no_openapi(app.title, app.version)
    return json.dumps(document)


def _no_openapi(title: str, version: str) -> dict[str, Any]:
    return {"openapi": "3.1.0", "info": {"title": title, "version": version}, "paths": {}}


def seconds_since_process_start() -> float:
    """How long this process has existed; falls back to CPU time where /proc is missing."""
    try:
        with open("/proc/self/stat", "rb") as stat:
            ticks = int(stat.read().rpartition(b")")[2].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return time.process_time()


def python_version() -> str:
    """``3.11.7``."""
    return ".".join(str(part) for part in sys.version_info[:3])
