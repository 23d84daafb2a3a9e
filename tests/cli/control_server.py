"""A small server that speaks the control API to a real `fal` command and remembers what it was asked."""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.support.waiting import wait_until

KEY = "key-id:key-secret"
Json = dict[str, Any]


@dataclass
class ControlServer:
    """What the server does next, and what it has seen.

    Args:
        build: events of the next build, the last one its state.
        session_log: entries that a session sends before it waits for its caller to hang up.
        refuse_deploy: (status, detail) for the next deployments.
        drop_sessions: how many sessions break off after their entries, as when a gateway restarts.
    """

    owner: str = "tester"
    build: list[Json] = field(default_factory=list)
    session_log: list[Json] = field(default_factory=list)
    refuse_deploy: tuple[int, str] | None = None
    drop_sessions: int = 0
    url: str = ""
    objects: dict[str, bytes] = field(default_factory=dict)
    deployments: list[Json] = field(default_factory=list)
    apps: dict[str, Json] = field(default_factory=dict)
    deleted: list[str] = field(default_factory=list)
    changes: list[Json] = field(default_factory=list)
    queued: list[Json] = field(default_factory=list)
    sessions: list[str] = field(default_factory=list)
    hung_up: list[str] = field(default_factory=list)
    stopping: bool = False

    def urls(self, app: str) -> Json:
        return {"sync": f"{self.url}/{app}", "queue": f"{self.url}/queue/{app}"}

    def application(self) -> Starlette:
        api, app = "/api/v1", "/api/v1/apps/{owner}/{app}"
        return Starlette(
            routes=[
                Route("/health", lambda request: JSONResponse({"status": "ok"})),
                Route(f"{api}/whoami", self._whoami),
                Route(f"{api}/bundles/missing", self._missing, methods=["POST"]),
                Route(f"{api}/bundles/objects/{{sha256}}", self._object, methods=["PUT"]),
                Route(f"{api}/deployments", self._deploy, methods=["POST"]),
                Route(f"{api}/deployments/{{owner}}/{{app}}/{{revision}}/events", self._events),
                Route(f"{api}/apps", self._apps),
                Route(f"{app}/session", self._session),
                Route(f"{app}/scaling", self._change, methods=["PATCH"]),
                Route(f"{app}/revision", self._change, methods=["POST"]),
                Route(f"{app}/logs", self._logs),
                Route(f"{app}/workers", self._workers),
                Route(f"{app}/revisions", self._revisions),
                Route(app, self._app, methods=["GET", "DELETE"]),
                Route(f"{api}/keys", self._keys, methods=["GET", "POST"]),
                Route(f"{api}/keys/{{key_id}}", self._change, methods=["DELETE"]),
                Route(f"{api}/queue/{{owner}}/{{app}}", self._queue, methods=["GET", "DELETE"]),
                Route("/queue/{owner}/{app}/requests/{id}/status", self._status),
                Route("/queue/{owner}/{app}/requests/{id}", self._result),
                Route("/queue/{owner}/{app}/{path:path}", self._submit, methods=["POST"]),
                Route("/queue/{owner}/{app}", self._submit, methods=["POST"]),
            ]
        )

    def _refusal(self, request: Request) -> Response | None:
        given = request.headers.get("authorization", "")
        if given == f"Key {KEY}":
            return None
        return JSONResponse({"detail": "Invalid key" if given else "A key is needed"}, 401)

    async def _whoami(self, request: Request) -> Response:
        return self._refusal(request) or JSONResponse({"owner": self.owner, "key_id": "key-id"})

    async def _missing(self, request: Request) -> Response:
        if refusal := self._refusal(request):
            return refusal
        hashes = (await request.json())["hashes"]
        return JSONResponse({"missing": [sha256 for sha256 in hashes if sha256 not in self.objects]})

    async def _object(self, request: Request) -> Response:
        body = await request.body()
        if hashlib.sha256(body).hexdigest() != request.path_params["sha256"]:
            return JSONResponse({"detail": "the content has another hash"}, 400)
        self.objects[request.path_params["sha256"]] = body
        return Response(status_code=204)

    async def _deploy(self, request: Request) -> Response:
        if refusal := self._refusal(request):
            return refusal
        if self.refuse_deploy is not None:
            return JSONResponse({"detail": self.refuse_deploy[1]}, self.refuse_deploy[0])
        body = await request.json()
        self.deployments.append(body)
        name = "0c6f8a3e-1111-4222-8333-444455556666" if body["ephemeral"] else body["spec"]["name"]
        app, revision = f"{self.owner}/{name}", f"rev{len(self.deployments)}"
        return JSONResponse(
            {"app": app, "revision": revision, "environment_key": "e1", "state": "BUILDING", "urls": self.urls(app)},
            201,
        )

    async def _events(self, request: Request) -> Response:
        app = _name(request)
        body = self.deployments[-1]
        events = self.build or [{"type": "state", "state": "READY", "error": None, "notes": {}}]
        if events[-1].get("state") == "READY":
            self.apps[app] = {
                "app": app,
                "revision": request.path_params["revision"],
                "auth": body["spec"]["auth"] or "private",
                "ephemeral": body["ephemeral"],
                "class_name": body["spec"]["class_name"],
                "entry_file": body["spec"]["entry_file"],
                "scaling": body["spec"]["scaling"],
                "created_at": "2025-01-02T03:04:05+00:00",
                "workers": [],
            }
        endpoints = {
            endpoint["path"]: {kind: url + endpoint["path"].rstrip("/") for kind, url in self.urls(app).items()}
            for endpoint in body["spec"]["endpoints"]
        }
        sent = [e | ({"urls": self.urls(app) | {"endpoints": endpoints}} if "state" in e else {}) for e in events]
        return StreamingResponse(_sse(sent), media_type="text/event-stream")

    async def _session(self, request: Request) -> Response:
        app = _name(request)
        if app not in self.apps:
            return JSONResponse({"detail": f"no app {app}"}, 404)
        self.sessions.append(request.query_params.get("after", ""))
        return StreamingResponse(self._hold(app), media_type="text/event-stream")

    async def _hold(self, app: str) -> AsyncIterator[str]:
        async for event in _sse([{"type": "log", **entry} for entry in self.session_log]):
            yield event
        if self.drop_sessions > 0:
            self.drop_sessions -= 1
            return
        try:
            while app in self.apps and not self.stopping:
                yield ": keep-alive\n\n"
                await asyncio.sleep(0.02)
        finally:
            self.hung_up.append(app)

    async def _apps(self, request: Request) -> Response:
        return self._refusal(request) or JSONResponse({"items": list(self.apps.values())})

    async def _app(self, request: Request) -> Response:
        if refusal := self._refusal(request):
            return refusal
        app = _name(request)
        if app not in self.apps:
            return JSONResponse({"detail": f'There is no app "{app}".'}, 404)
        if request.method == "DELETE":
            del self.apps[app]
            self.deleted.append(app)
            return Response(status_code=204)
        return JSONResponse(self.apps[app])

    async def _change(self, request: Request) -> Response:
        body = await request.body()
        self.changes.append({"path": request.url.path, "body": json.loads(body) if body else None})
        return JSONResponse({"app": request.url.path})

    async def _logs(self, request: Request) -> Response:
        entries = [e | {"id": f"{n}-0"} for n, e in enumerate(self.session_log, 1)]
        return JSONResponse({"items": entries})

    async def _workers(self, request: Request) -> Response:
        worker = {"worker_id": "w1", "app": _name(request), "state": "IDLE", "machine_type": "S", "host": "here"}
        return JSONResponse(
            {
                "items": [
                    worker | {"stages": {"fork": 0.1, "setup": 1.25, "total": 1.4}, "start_kind": "zygote", "served": 3}
                ]
            }
        )

    async def _revisions(self, request: Request) -> Response:
        app = _name(request)
        if app not in self.apps and not any(app.endswith(f"/{d['spec']['name']}") for d in self.deployments):
            return JSONResponse({"items": []})
        return JSONResponse({"items": [{"revision": "rev1", "state": "READY", "message": "first", "current": True}]})

    async def _keys(self, request: Request) -> Response:
        if request.method == "POST":
            wanted = await request.json()
            return JSONResponse({"key_id": "k2", **wanted, "secret": "s2", "key": "k2:s2"}, 201)
        key = {"key_id": "k2", "name": "ci", "scope": "API", "created_at": None, "revoked": True}
        return JSONResponse({"items": [key]})

    async def _queue(self, request: Request) -> Response:
        count: dict[str, Any] = {"size": 7} if request.method == "GET" else {"flushed": 7}
        if request.query_params.get("by_user"):
            count |= {"by_user": {"tester": 4, "friend": 3}}
        if request.query_params.get("caller_user_id") == "friend":
            count = {"flushed": 3}
        return JSONResponse({"app": _name(request), **count})

    async def _submit(self, request: Request) -> Response:
        self.queued.append({"path": request.url.path, "body": await request.json()})
        return JSONResponse({"request_id": "r1", "status": "IN_QUEUE"})

    async def _status(self, request: Request) -> Response:
        return JSONResponse({"status": "COMPLETED", "request_id": "r1", "logs": [{"message": "from the app"}]})

    async def _result(self, request: Request) -> Response:
        body = self.queued[-1]["body"]
        if body.get("prompt") == "fail":
            return JSONResponse({"detail": "it broke"}, 500, headers={"x-fal-error-type": "runner_server_error"})
        return JSONResponse({"echo": body})


def _name(request: Request) -> str:
    return f"{request.path_params['owner']}/{request.path_params['app']}"


async def _sse(events: list[Json]) -> AsyncIterator[str]:
    yield ": begin\n\n"
    for event in events:
        yield f"data: {json.dumps(event)}\n\n"


@contextmanager
def serving(control: ControlServer) -> Iterator[ControlServer]:
    """Serve on a free port of the loopback address, in a thread, until the block ends."""
    config = uvicorn.Config(
        control.application(), host="127.0.0.1", port=0, log_level="error", ws="none", timeout_graceful_shutdown=2
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_until(lambda: server.started, "the control server to listen")
    control.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    try:
        yield control
    finally:
        control.stopping = True
        server.should_exit = True
        thread.join(10)
