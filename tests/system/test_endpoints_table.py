"""Life cycle, endpoints, document, files, streams and cancellation through the platform; `rows.py` says which test is
whose."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import msgpack
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.support.platform import PlatformUnderTest
from tests.support.waiting import wait_until

APPS = "tests/system/apps/endpoints.py"


@pytest.fixture(scope="module")
def app(platform: PlatformUnderTest) -> str:
    return platform.deploy(APPS, "Endpoints")


@pytest.fixture(scope="module")
def document(platform: PlatformUnderTest, app: str) -> dict[str, Any]:
    """What is kept with the app once a runner was ready."""
    assert post(app).status_code == 200
    with platform.client() as client:
        return client.get("/api/v1/apps/tester/endpoints/openapi.json").raise_for_status().json()  # type: ignore[no-any-return]


@pytest.fixture
def tag() -> str:
    return uuid.uuid4().hex


def post(url: str, headers: dict[str, str] | None = None, **body: Any) -> httpx.Response:
    return httpx.post(url, json=body, headers=headers, trust_env=False, timeout=60)


def at_data(platform: PlatformUnderTest, name: str) -> Path:
    return platform.data / "data" / name


# --- life cycle -------------------------------------------------------------------------------------------------------


def test_setup_runs_before_the_first_request(app: str, platform: PlatformUnderTest) -> None:
    """It was async, on the main thread, and `get_current_app()` knew the app."""
    assert post(app, text="a").json() == {"text": "A"}
    assert at_data(platform, "life.txt").read_text().startswith("setup SETUP\n")


def test_setup_that_fails_is_said_to_callers_and_in_the_log(platform: PlatformUnderTest) -> None:
    url = platform.deploy(APPS, "BadSetup")
    answer = post(url)
    assert (answer.status_code, answer.headers["x-fal-error-type"]) == (503, "runner_scheduling_failure")
    assert "no weights at /nowhere" in answer.json()["detail"]
    wait_until(lambda: "RuntimeError: no weights" in platform.fal("logs", "bad-setup").stdout, "the traceback")


def test_a_runner_that_stops_ends_in_order(platform: PlatformUnderTest) -> None:
    """handle_exit() while it still runs, whatever that raises; then teardown()."""
    url = platform.deploy(APPS, "Endpoints", "--app-name", "ending")
    assert post(url).status_code == 200
    life = at_data(platform, "life.txt")
    life.write_text("")
    platform.fal("runners", "stop", platform.workers("tester/ending")[0]["worker_id"])
    wait_until(lambda: "teardown" in life.read_text(), "the runner to wind up", timeout=60)
    assert life.read_text().splitlines() == ["handle_exit RUNNING", "teardown TERMINATING"]


def test_the_current_request_is_each_ones_own(app: str) -> None:
    """Both are under way in one process at the same time."""

    def call(number: int) -> tuple[dict[str, Any], httpx.Headers]:
        text = "second" if number else "first"
        preference = json.dumps({"expiration_duration_seconds": 3600 + number})
        headers = {"x-mine": text, "x-fal-object-lifecycle-preference": preference}
        answer = post(f"{app}/context", headers, text=text)
        return answer.json(), answer.headers

    with ThreadPoolExecutor(2) as pool:
        (first, one), (second, two) = pool.map(call, range(2))
    assert first["pid"] == second["pid"]
    assert (first["id"], second["id"]) == (one["x-fal-request-id"], two["x-fal-request-id"])
    assert (first["header"], second["header"]) == ("first", "second")
    assert first["endpoint"] == second["endpoint"] == "/context"
    assert second["preference"]["expiration_duration_seconds"] == 3601


def test_hints_and_health(app: str) -> None:
    assert post(app).headers["x-fal-runner-hints"] == "a-model"
    answer = httpx.get(f"{app}/health", trust_env=False, timeout=60)
    assert answer.json() == {"fine": True, "version": "42"}


# --- endpoints --------------------------------------------------------------------------------------------------------


def test_endpoints_are_post_only_and_may_nest(app: str) -> None:
    assert post(f"{app}/deep/er/path").json() == {"text": "deep"}
    assert httpx.get(f"{app}/deep/er/path", trust_env=False, timeout=60).status_code == 405


def test_handlers_are_fastapis(app: str) -> None:
    answer = post(f"{app}/fastapi", {"x-word": "said"}, one={"text": "a"}, two={"number": 3})
    assert answer.headers["x-answer"] == "set"
    assert answer.json() == {"one": "a", "two": 3, "path": "/fastapi", "word": "said", "depended": "from Depends"}
    sent = httpx.post(f"{app}/upload", files={"file": ("a.txt", b"abc")}, trust_env=False, timeout=60)
    assert sent.json() == {"name": "a.txt", "size": 3}


def test_sync_handlers_run_in_threads_and_async_ones_on_the_loop(app: str) -> None:
    assert (post(f"{app}/threads").json(), post(f"{app}/loop").json()) == (False, True)


def test_a_health_check_of_ones_own_path(platform: PlatformUnderTest) -> None:
    """`/health` is broken; the one that is marked works, and the app serves."""
    url = platform.deploy(APPS, "Watched")
    assert post(url).json() == {"text": "up"}
    assert post(f"{url}/how").json() == {"text": "well"}
    assert httpx.get(f"{url}/health", trust_env=False, timeout=60).status_code == 500


def test_a_websocket(app: str) -> None:
    """Here `current_request` is there too."""
    with connect(f"{app.replace('http', 'ws')}/raw", proxy=None) as socket:
        socket.send("hello")
        assert socket.recv(20) == "hello False"
        with pytest.raises(ConnectionClosed):
            socket.recv(20)
        assert (socket.close_code, socket.close_reason) == (4000, "said all")


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("def run(self): ...\n    run = fal.endpoint('/')(fal.endpoint('/b')(run))", "is already an endpoint"),
        ("pass", "has no endpoint"),
        ("@fal.endpoint('/', is_websocket=True)\n    def run(self): ...", "async def run(self, socket: WebSocket)"),
        ("@fal.endpoint('run')\n    def run(self): ...", "must begin with '/'"),
    ],
)
def test_endpoints_that_cannot_be_meant(platform: PlatformUnderTest, tmp_path: Path, body: str, says: str) -> None:
    (tmp_path / "odd.py").write_text(f"import fal\n\nclass Odd(fal.App):\n    {body}\n")
    done = platform.fal("deploy", f"{tmp_path}/odd.py::Odd", check=False)
    assert (done.returncode, says in done.stderr) == (1, True), done.stderr


def talk(app: str, path: str, *inputs: Any) -> Iterator[Any]:
    with connect(f"{app.replace('http', 'ws')}{path}", proxy=None) as socket:
        for each in inputs:
            socket.send(msgpack.packb(each))
        while True:
            try:
                frame = socket.recv(20)
            except ConnectionClosed:
                return
            yield msgpack.unpackb(frame) if isinstance(frame, bytes) else json.loads(frame)


def test_realtime_unary(app: str) -> None:
    answers = talk(app, "/unary", {"number": 1}, {"number": "x"}, {"number": 2})
    seen: list[Any] = []
    for answer in answers:
        seen.append(answer)
        if 2 in answer.get("numbers", ()):
            break
    assert [number for answer in seen for number in answer.get("numbers", ())] == [1, 2]
    assert [answer["error"] for answer in seen if "error" in answer] == ["INVALID_INPUT"]


def test_realtime_server_streaming(app: str) -> None:
    assert list(talk(app, "/server", {"number": 3})) == [{"number": 0}, {"number": 1}, {"number": 2}]


def test_realtime_client_streaming(app: str) -> None:
    assert list(talk(app, "/client", {"number": 4}, {"number": 6})) == [{"total": 10}]


def test_realtime_bidirectional(app: str) -> None:
    answers = talk(app, "/bidi", {"number": 4}, {"number": 6})
    assert [next(answers), next(answers)] == [{"doubled": 8}, {"doubled": 12}]


# --- the document -----------------------------------------------------------------------------------------------------


def test_the_document_keeps_orders(document: dict[str, Any]) -> None:
    assert document["x-fal-order-paths"][:3] == ["/", "/context", "/deep/er/path"]
    assert set(document["x-fal-order-paths"]) == set(document["paths"])
    assert document["components"]["schemas"]["Input"]["x-fal-order-properties"] == ["text", "tag"]


def test_the_document_tells_of_sockets_and_health(document: dict[str, Any]) -> None:
    protocol = document["paths"]["/unary"]["x-fal-protocol"]
    assert protocol["config"] == {"buffering": 4, "sessionTimeout": 60, "maxBatchSize": 3}
    assert (protocol["type"], protocol["operationId"], protocol["realtimeMode"]) == ("realtime", "unary", "unary")
    assert protocol["contentType"] == "application/msgpack"
    assert "requestBody" in document["paths"]["/unary"]["post"]
    assert "x-fal-protocol" in document["paths"]["/raw"]
    assert "/health" in document["paths"]


# --- files, streams, cancellation, what apps are told -----------------------------------------------------------------


def test_a_stream(app: str) -> None:
    answer = post(f"{app}/letters/stream", text="ab")
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text == "data: a\n\ndata: b\n\n"


def queued(platform: PlatformUnderTest, client: httpx.Client, path: str, tag: str) -> dict[str, Any]:
    """A request that runs."""
    made: dict[str, Any] = client.post(f"/queue/tester/endpoints{path}", json={"tag": tag}).json()
    wait_until(lambda: at_data(platform, tag).exists(), "the request to run", timeout=60)
    return made


def test_a_cancel_reaches_the_apps_own_route(platform: PlatformUnderTest, app: str, tag: str) -> None:
    with platform.client() as client:
        made = queued(platform, client, "/long", tag)
        assert client.put(made["cancel_url"]).status_code == 202
        wait_until(lambda: client.get(made["status_url"]).status_code == 200, "the request to end")
        assert client.get(made["response_url"]).status_code == 499


def test_code_without_a_cancel_route_goes_on_to_its_end(platform: PlatformUnderTest, app: str, tag: str) -> None:
    with platform.client() as client:
        made = queued(platform, client, "/unstoppable", tag)
        client.put(made["cancel_url"])
        at_data(platform, f"{tag}-go").touch()
        wait_until(lambda: at_data(platform, f"{tag}-done").exists(), "its code to end by itself")
        wait_until(lambda: client.get(made["status_url"]).status_code == 200, "the request to end")


def test_a_caller_who_hangs_up_is_noticed(platform: PlatformUnderTest, app: str, tag: str) -> None:
    with ThreadPoolExecutor(1) as pool, httpx.Client(trust_env=False, timeout=httpx.Timeout(60, read=3)) as client:
        calling = pool.submit(client.post, f"{app}/watching", json={"tag": tag})
        wait_until(lambda: at_data(platform, tag).exists(), "the request to run", timeout=60)
        assert isinstance(calling.exception(20), httpx.ReadTimeout)
    wait_until(lambda: at_data(platform, f"{tag}-left").exists(), "the handler to be stopped")


def test_request_headers_and_variables(platform: PlatformUnderTest, app: str) -> None:
    preference = '{"expiration_duration_seconds": 3600}'
    given = {"x-own": "1", "authorization": f"Key {platform.key}", "x-fal-object-lifecycle-preference": preference}
    answer = post(f"{app}/seen", given)
    seen, environ = answer.json()["headers"], answer.json()["environ"]
    assert seen == {
        "x-fal-request-id": answer.headers["x-fal-request-id"],
        "x-fal-endpoint": "tester/endpoints/seen",
        "x-fal-object-lifecycle-preference": preference,
        "x-own": "1",
        "authorization": None,
    }
    assert (environ["IS_ISOLATE_AGENT"], environ["FAL_RUNNER_STATE"]) == ("1", "RUNNING")
    assert (environ["FAL_APP_NAME"], environ["FAL_APP_OWNER"]) == ("endpoints", "tester")
    assert environ["FAL_JOB_ID"] == platform.workers("tester/endpoints")[0]["worker_id"]
    assert environ["HF_HOME"].startswith("/data")


def test_a_served_function_with_setup_and_a_cached_one(platform: PlatformUnderTest) -> None:
    url = platform.deploy(APPS, "served")
    first, second = (httpx.post(url, params={"word": "a"}, trust_env=False, timeout=60).json() for _ in range(2))
    assert (first["model"], first["word"]) == ("loaded once", "a")
    assert first["again"] == second["again"], "computed once in this process"
