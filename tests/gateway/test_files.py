"""Files of apps: shown when harmless, downloaded otherwise, whole or in part."""

from __future__ import annotations

import pytest

from tests.gateway.platform import RunningGateway

FILE_ID = "f" * 32
CONTENT = bytes(range(256)) * 4


def put(gateway: RunningGateway, content_type: str, name: str = "a.bin", data: bytes = CONTENT) -> str:
    gateway.store.files.put(data, FILE_ID, name, content_type)
    return f"/cdn/files/{FILE_ID}/{name}"


@pytest.mark.parametrize(
    ("content_type", "disposition"),
    [
        ("image/png", "inline"),
        ("image/jpeg", "inline"),
        ("video/mp4", "inline"),
        ("audio/wav", "inline"),
        ("application/pdf", "inline"),
        ("text/plain", "inline"),
        ("text/html", "attachment"),
        ("image/svg+xml", "attachment"),
        ("IMAGE/SVG+XML; charset=utf-8", "attachment"),
        ("application/xhtml+xml", "attachment"),
        ("text/javascript", "attachment"),
        ("application/octet-stream", "attachment"),
        ("nonsense\r\nx-injected: 1", "attachment"),
        ("", "attachment"),
    ],
)
def test_only_harmless_types_are_shown(gateway: RunningGateway, content_type: str, disposition: str) -> None:
    path = put(gateway, content_type)
    with gateway.client() as client:
        answer = client.get(path)
    assert (answer.status_code, answer.content) == (200, CONTENT)
    assert answer.headers["content-disposition"].startswith(disposition)
    assert answer.headers["x-content-type-options"] == "nosniff"
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert ("sandbox" in policy) == (content_type != "application/pdf")
    assert "x-injected" not in answer.headers
    expected = content_type if "/" in content_type and "\r" not in content_type else "application/octet-stream"
    assert answer.headers["content-type"].startswith(expected)
    assert answer.headers["access-control-allow-origin"] == "*"


def test_names_of_users_cannot_break_the_header(gateway: RunningGateway) -> None:
    gateway.store.files.put(b"x", FILE_ID, 'a"b\r\nc: d/é.png', "image/png")
    with gateway.client() as client:
        answer = client.get(f"/cdn/files/{FILE_ID}/whatever.png")
    assert answer.headers["content-disposition"] == "inline; filename*=UTF-8''a%22b%0D%0Ac%3A%20d%2F%C3%A9.png"


@pytest.mark.parametrize(
    ("asked", "status", "start", "end"),
    [
        ("bytes=0-9", 206, 0, 10),
        ("bytes=1000-", 206, 1000, 1024),
        ("bytes=1000-5000", 206, 1000, 1024),
        ("bytes=-24", 206, 1000, 1024),
        ("bytes=-5000", 206, 0, 1024),
        ("bytes=0-0,5-6", 200, 0, 1024),
        ("bytes=9-1", 200, 0, 1024),
        ("lines=1-2", 200, 0, 1024),
        ("bytes=1024-", 416, 0, 0),
        ("bytes=-0", 416, 0, 0),
    ],
)
def test_ranges(gateway: RunningGateway, asked: str, status: int, start: int, end: int) -> None:
    path = put(gateway, "video/mp4")
    with gateway.client() as client:
        answer = client.get(path, headers={"range": asked})
    assert answer.status_code == status
    if status == 416:
        assert answer.headers["content-range"] == "bytes */1024"
        return
    assert answer.content == CONTENT[start:end]
    if status == 206:
        assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/1024"


def test_a_head_and_a_known_file_send_no_body(gateway: RunningGateway) -> None:
    path = put(gateway, "image/png")
    with gateway.client() as client:
        head = client.head(path)
        assert (head.status_code, head.headers["content-length"], head.content) == (200, "1024", b"")
        again = client.get(path, headers={"if-none-match": head.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        changed = client.get(path, headers={"range": "bytes=0-1", "if-range": '"other"'})
        assert (changed.status_code, len(changed.content)) == (200, 1024)


def test_a_large_file_and_an_empty_one(gateway: RunningGateway) -> None:
    large = bytes(1_500_000)
    with gateway.client() as client:
        assert client.get(put(gateway, "image/png", data=large)).content == large
        assert client.get(put(gateway, "image/png", data=b"")).content == b""


@pytest.mark.parametrize(
    "path",
    ["/cdn/files/unknown-id-0000/a.png", "/cdn/files/../../etc/passwd", "/cdn/files/%2e%2e%2fx/a", "/cdn/", "/cdn"],
)
def test_what_is_not_there_is_a_404(gateway: RunningGateway, path: str) -> None:
    with gateway.client() as client:
        answer = client.get(path)
    assert answer.status_code == 404
    assert answer.headers["x-fal-request-id"]


def test_files_are_only_read(gateway: RunningGateway) -> None:
    path = put(gateway, "image/png")
    with gateway.client() as client:
        answer = client.delete(path)
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET")
