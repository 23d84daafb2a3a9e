"""A gateway as it runs for real, in a thread of its own: real Redis, real uvicorn, and workers that are stubs.

The stubs stand where supervisors stand: on the real Inbox.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import httpx
import uvloop
from fal._spec import AppSpec, Auth, BundleFile, EndpointSpec, EnvironmentSpec, ScalingSpec

from gateway.app import Gateway, create_app
from gateway.openapi import document
from gateway.server import listening_socket, server
from gateway.settings import Settings
from scheduler.store import Inbox, InboxClosed, Store
from scheduler.store.records import (
    Claimed,
    HostRecord,
    Outcome,
    RevisionRecord,
    RevisionState,
    WorkerRecord,
    WorkerState,
)
from tests.gateway.conformance import Conformance

T = TypeVar("T")
Handler = Callable[["StubWorker", Claimed], Awaitable[Outcome | None]]

OWNER = "tester"
JSON = (("content-type", "application/json"),)
HELLO = AppSpec(
    name="hello",
    class_name="Hello",
    entry_file="hello.py",
    environment=EnvironmentSpec("3.11"),
    endpoints=(EndpointSpec("/", "run"), EndpointSpec("/generate", "generate")),
)
HOST = HostRecord("this-host", ("XS", "S", "M", "L", "XL"), (), False, 2, 4096)


async def echo(_worker: StubWorker, claim: Claimed) -> Outcome:
    """Answers with the body that it got."""
    return Outcome(200, JSON, claim.body, inference_seconds=0.25)


@dataclass
class StubWorker:
    """One worker of an app: hands every claim to ``handler`` and stores what it returns, unless that is None."""

    store: Store
    inbox: Inbox
    handler: Handler
    claims: list[Claimed] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    released: asyncio.Event = field(default_factory=asyncio.Event)
    """For handlers that wait for the test's word."""
    task: asyncio.Task[None] | None = None

    async def run(self) -> None:
        running: set[asyncio.Task[None]] = set()
        while True:
            try:
                claim = await self.inbox.next()
            except InboxClosed:
                break
            self.claims.append(claim)
            task = asyncio.create_task(self._answer(claim))
            running.add(task)
            task.add_done_callback(running.discard)
        await asyncio.gather(*running)

    async def _answer(self, claim: Claimed) -> None:
        try:
            outcome = await self.handler(self, claim)
        except Exception as error:  # noqa: BLE001 - the caller's test shall see it, not wait for an answer for ever
            outcome = Outcome(500, JSON, f'{{"detail": "the stub failed: {error!r}"}}'.encode())
        if outcome is not None:
            await self.inbox.finish(claim, outcome)

    async def stop(self) -> None:
        self.inbox.close_to_new()
        if self.task is not None:
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)
        await self.inbox.close()


class RunningGateway:
    """One gateway on a free port. Everything of it lives on the loop of its thread; ``call`` runs coroutines there."""

    def __init__(self, redis_url: str, data_dir: Path, **settings: Any) -> None:
        self.settings = Settings(redis_url=redis_url, data_dir=data_dir, bind_port=0, **settings)
        self.store: Store
        self.gateway: Gateway
        self.workers: list[StubWorker] = []
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="gateway")
        self._server = server(self._app, self.settings, lambda: self.gateway.stop())
        self.key = ""

    def start(self) -> RunningGateway:
        self._thread.start()
        assert self._ready.wait(20), "the gateway did not start"
        if self._failure is not None:
            raise self._failure
        return self

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(20)
        assert not self._thread.is_alive(), "the gateway did not stop"

    def call(self, coro: Coroutine[Any, Any, T]) -> T:
        """The result of a coroutine that is run beside the gateway."""
        return asyncio.run_coroutine_threadsafe(coro, self.loop).result(20)

    def client(self, **options: Any) -> httpx.Client:
        """A caller without credentials. What the control API answers is held against its document."""
        hooks = {"response": [self.conformance.check]}
        return httpx.Client(base_url=self.url, trust_env=False, timeout=20, event_hooks=hooks, **options)

    def owner_client(self, **options: Any) -> httpx.Client:
        """A caller with the owner's key."""
        return self.client(headers={"authorization": f"Key {self.key}"}, **options)

    def release(self, worker: StubWorker) -> None:
        """Lets a handler of the worker that waits for ``released`` go on."""
        self.loop.call_soon_threadsafe(worker.released.set)

    def app(self, name: str | None = None, auth: Auth = "public", ephemeral: bool = False) -> str:
        """An app that could serve, without a worker yet; of a name of its own unless one is given."""
        return self.call(self._deploy(f"{OWNER}/{name or f'app-{uuid.uuid4().hex[:8]}'}", auth, ephemeral))

    def worker(self, app: str, handler: Handler = echo) -> StubWorker:
        """A worker for the app."""
        return self.call(self._work(app, handler))

    async def _deploy(self, app: str, auth: Auth, ephemeral: bool) -> str:
        name = app.split("/")[1]
        record = revision_record(app, name)
        await self.store.apps.put_revision(record)
        ttl = 30 if ephemeral else None
        await self.store.apps.point(
            app, record.revision, auth=auth, scaling=ScalingSpec(), ephemeral=ephemeral, session_ttl_s=ttl
        )
        return app

    async def _work(self, app: str, handler: Handler) -> StubWorker:
        alias = await self.store.apps.get(app)
        assert alias is not None
        assert alias.revision is not None
        worker_id = uuid.uuid4().hex[:12]
        epoch = await self.store.leader.lead("tests", 60_000) or 0
        record = WorkerRecord(app, worker_id, alias.revision, HOST.host, WorkerState.PENDING, "S", (), 0)
        await self.store.workers.place(record, epoch)
        inbox = await self.store.open_inbox(app, worker_id, alias.revision)
        worker = StubWorker(self.store, inbox, handler)
        inbox.cancelled = worker.cancelled.append
        await self.store.workers.update(app, worker_id, state=WorkerState.IDLE, ready=True)
        worker.task = asyncio.create_task(worker.run())
        self.workers.append(worker)
        return worker

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                self.loop = runner.get_loop()
                runner.run(self._serve())
        except BaseException as error:  # noqa: BLE001 - handed to the test
            self._failure = error
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        settings = self.settings
        self.store = await Store.connect(settings.redis_url, settings.data_dir, files=settings.files)
        try:
            record, secret = await self.store.keys.create(OWNER, "tests")
            self.key = f"{record.key_id}:{secret}"
            self.gateway = create_app(self.store, self.settings)
            self.conformance = Conformance(document(self.gateway.routes))
            listener = listening_socket(self.settings)
            self.address: tuple[str, int] = listener.getsockname()[:2]
            self.url = f"http://{self.address[0]}:{self.address[1]}"
            serving = asyncio.create_task(self._server.serve(sockets=[listener]))
            while not (self._server.started or serving.done()):
                await asyncio.sleep(0.005)
            self._ready.set()
            await serving
        finally:
            for worker in self.workers:
                await worker.stop()
            await self.store.close()

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        await self.gateway(scope, receive, send)


def revision_record(app: str, name: str) -> RevisionRecord:
    """A revision that is ready."""
    spec = replace(HELLO, name=name)
    file = BundleFile("hello.py", "0" * 64, 0)
    return RevisionRecord(app, uuid.uuid4().hex[:12], spec, "0" * 64, (file,), "environment", RevisionState.READY, 0)


def exchange(address: tuple[str, int], request: bytes, timeout: float = 10.0) -> bytes:
    """Sends raw bytes and returns everything that comes back until the other side closes."""
    with socket.create_connection(address, timeout) as connection:
        connection.sendall(request)
        received = b""
        while block := connection.recv(65536):
            received += block
    return received
