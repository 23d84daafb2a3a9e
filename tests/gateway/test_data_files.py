"""``fal files``, call by call as fal 1.83.0 sends it: whole paths behind the routes, so that two slashes meet."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.gateway.conftest import StartGateway
from tests.gateway.platform import RunningGateway


def form(data: bytes) -> dict[str, Any]:
    return {"files": {"file_upload": ("chunk", data, "application/octet-stream")}}


def names(client: httpx.Client, path: str) -> list[str]:
    return [entry["path"] for entry in client.get(f"/rest/files/list/{path}").raise_for_status().json()]


def test_put_list_get_move_delete(gateway: RunningGateway) -> None:
    with gateway.owner_client() as client:
        at = "/data/first/a b.txt"
        assert client.post(f"/rest/files/file/local/{at}", **form(b"content")).status_code == 200
        [entry] = client.get("/rest/files/list//data/first").json()
        assert (entry["path"], entry["size"], entry["is_file"]) == (at, 7, True)
        assert entry["updated_time"].endswith("+00:00")
        got = client.get(f"/rest/files/file/{at}")
        assert (got.content, got.headers["content-disposition"]) == (b"content", "attachment")
        moved = client.post(f"/rest/files/rename/{at}", json={"destination": "/data/first/b.txt"})
        assert moved.status_code == 200
        assert names(client, "/data/first") == ["/data/first/b.txt"]
        assert client.delete("/rest/files/file//data/first").status_code == 200
        assert "/data/first" not in names(client, "/data")
        assert client.get(f"/rest/files/file/{at}").status_code == 404
        assert names(client, "/data/first") == []


def test_a_large_file_in_parts(gateway: RunningGateway) -> None:
    at = "/rest/files/file/multipart//data/large/weights.bin"
    with gateway.owner_client() as client:
        upload_id = client.post(f"{at}/initiate").json()["upload_id"]
        parts = [client.put(f"{at}/{upload_id}/{number}", **form(b"%d" % number * 5)).json() for number in (1, 2)]
        assert parts[0].keys() == {"part_number", "etag"}
        assert client.post(f"{at}/{upload_id}/complete", json={"parts": parts}).json() == {"etag": ""}
        assert client.get("/rest/files/file//data/large/weights.bin").content == b"1111122222"
        again = client.post(f"{at}/initiate").json()["upload_id"]
        client.put(f"{at}/{again}/1", **form(b"x"))
        assert client.post(f"{at}/{again}/cancel").status_code == 200
        assert client.post(f"{at}/{again}/complete", json={"parts": parts}).status_code == 400
        other = at.replace("weights", "other")
        assert client.put(f"{other}/{again}/1", **form(b"x")).status_code == 404


def test_the_folder_is_the_one_that_apps_see(start_gateway: StartGateway, tmp_path: Path) -> None:
    gateway = start_gateway(app_data=tmp_path / "elsewhere")
    with gateway.owner_client() as client:
        assert client.post("/rest/files/file/local//data/a.txt", **form(b"here")).status_code == 200
    assert (tmp_path / "elsewhere" / "a.txt").read_bytes() == b"here"


def test_a_key_is_needed(gateway: RunningGateway) -> None:
    with gateway.client() as anybody:
        assert anybody.get("/rest/files/list//data").status_code == 401
        assert anybody.get("/rest/files/file//data/x").status_code == 401
        assert anybody.delete("/rest/files/file//data/x").status_code == 401
        assert anybody.post("/rest/files/file/local//data/x", **form(b"x")).status_code == 401
        assert anybody.post("/rest/files/file/multipart//data/x/initiate").status_code == 401
        assert anybody.post("/rest/files/rename//data/x", json={"destination": "/data/y"}).status_code == 401


@pytest.fixture
def source() -> Iterator[str]:
    """A server on loopback: /file has five bytes, /moved leads there, /half breaks off, /large has a megabyte."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = {"/file": b"bytes", "/half": b"hal", "/large": bytes(1 << 20)}.get(self.path, b"")
            self.send_response(302 if self.path == "/moved" else 200 if body else 404)
            if self.path == "/moved":
                self.send_header("location", "/file")
            self.send_header("content-length", "9" if self.path == "/half" else str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_file_from_its_url(start_gateway: StartGateway, source: str) -> None:
    gateway = start_gateway(allow_private_webhooks=True, max_file_bytes=500_000)
    at = "/rest/files/file/url//data/fetched/a.bin"
    with gateway.owner_client() as client:
        for path in ("/file", "/moved"):
            assert client.post(at, json={"url": source + path}).json() == {"path": "/data/fetched/a.bin", "size": 5}
            assert client.get("/rest/files/file//data/fetched/a.bin").content == b"bytes"
        for path, status, said in (
            ("/half", 400, "broke off"), ("/none", 400, "answered 404"), ("/large", 413, "500000 bytes"),
        ):  # fmt: skip
            refused = client.post(at, json={"url": source + path})
            assert (refused.status_code, said in refused.json()["detail"]) == (status, True), refused.text
        assert client.get("/rest/files/file//data/fetched/a.bin").content == b"bytes"
    assert list((gateway.settings.data_dir / "uploads").glob("*.part")) == []


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/x", "http://localhost/x", "http://[::1]/x", "http://169.254.169.254/latest/meta-data/",
        "http://10.0.0.1/", "file:///etc/passwd", "gopher://x/", "http://", "http://a:99999/", "x" * 3000, "", "\n",
        "http://2130706433/",
    ],
)  # fmt: skip
def test_a_url_that_leads_inside_is_not_fetched(gateway: RunningGateway, url: str) -> None:
    """The gateway stands where callers do not: it must not fetch for them what only its neighbours may see."""
    with gateway.owner_client() as client:
        refused = client.post("/rest/files/file/url//data/inside", json={"url": url})
        assert (refused.status_code, bool(refused.json()["detail"])) == (400, True)
        assert client.get("/rest/files/file//data/inside").status_code == 404
        assert client.post("/rest/files/file/url//data", json={"url": "http://example.com/"}).status_code == 400
        assert client.post("/rest/files/file/url//etc/x", json={"url": "http://example.com/"}).status_code == 400
        assert client.post("/rest/files/file/url//data/x", json={"url": 1}).status_code == 400
    with gateway.client() as anybody:
        assert anybody.post("/rest/files/file/url//data/x", json={"url": url}).status_code == 401


@pytest.mark.parametrize("path", ["/etc/passwd", "/data/..%2f..%2fetc/passwd", "/data/%2e%2e/x", "/data"])
def test_nothing_else_is_reached(gateway: RunningGateway, path: str) -> None:
    with gateway.owner_client() as client:
        assert client.get(f"/rest/files/file/{path}").status_code in (400, 404)
        assert client.post(f"/rest/files/file/local/{path}", **form(b"x")).status_code in (400, 404)
        assert client.post("/rest/files/rename//data/x", json={"destination": path}).status_code in (400, 404)


@pytest.mark.parametrize(
    ("body", "content_type"),
    [(b"", "application/json"), (b"nonsense", "multipart/form-data; boundary=x"), (b"a=1", "multipart/form-data")],
)
def test_what_is_no_form(gateway: RunningGateway, body: bytes, content_type: str) -> None:
    with gateway.owner_client() as client:
        answer = client.post("/rest/files/file/local//data/x", content=body, headers={"content-type": content_type})
    assert answer.status_code == 400
    assert answer.json()["detail"]


@pytest.mark.parametrize("body", [{}, {"parts": 1}, {"parts": [1]}, {"parts": [{"part_number": "x", "etag": ""}]}])
def test_a_list_of_parts_that_cannot_be_read(gateway: RunningGateway, body: dict[str, Any]) -> None:
    at = "/rest/files/file/multipart//data/unread"
    with gateway.owner_client() as client:
        upload_id = client.post(f"{at}/initiate").json()["upload_id"]
        assert client.post(f"{at}/{upload_id}/complete", json=body).status_code == 400
