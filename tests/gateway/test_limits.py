"""What callers send that they should not: each gets one clear answer, and nobody else notices."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gateway.platform import RunningGateway, exchange


@pytest.fixture(scope="module")
def small(redis_server: str, data_dir: Path) -> Iterator[RunningGateway]:
    """A gateway with limits that a test can reach, and a worker for the app tester/hello."""
    limits = {"max_body_bytes": 100_000, "max_buffered_bytes": 150_000, "idle_timeout": 1}
    gateway = RunningGateway(redis_server, data_dir, header_timeout=0.4, body_timeout=0.4, **limits).start()
    gateway.worker(gateway.app("hello"))
    yield gateway
    gateway.stop()


def parts(answer: bytes) -> tuple[int, dict[bytes, bytes], bytes]:
    """Status, headers and body of the first answer in some bytes."""
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(b": ") for line in lines[1:])}
    return int(lines[0].split()[1]), headers, body


MALFORMED = {
    "no HTTP at all": b"hello there\r\n\r\n",
    "TLS to a plain port": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 40,
    "a header without a name": b"POST /tester/hello HTTP/1.1\r\nhost: x\r\n: y\r\n\r\n",
    "a control character in a header": b"POST /tester/hello HTTP/1.1\r\nhost: x\r\na: b\x01c\r\n\r\n",
    "two lengths": b"POST /tester/hello HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{}",
    "a length and chunks": (
        b"POST /tester/hello HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"
    ),
    "a negative length": b"POST /tester/hello HTTP/1.1\r\nhost: x\r\ncontent-length: -2\r\n\r\n{}",
    "a chunk of nonsense": b"POST /tester/hello HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n",
    "bytes that are no path": b"POST /tester/\xff\xfe HTTP/1.1\r\nhost: x\r\n\r\n",
    "no path": b"POST  HTTP/1.1\r\nhost: x\r\n\r\n",
    "a host that is none": b"POST /tester/hello HTTP/1.1\r\nhost: a/b<c>\r\ncontent-length: 0\r\n\r\n",
    "two hosts": b"POST /tester/hello HTTP/1.1\r\nhost: a\r\nhost: b\r\ncontent-length: 0\r\n\r\n",
}


@pytest.mark.parametrize("what", MALFORMED)
def test_malformed_http_is_a_400_with_a_reason(
    small: RunningGateway, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_connection(small.address, 5) as connection:
        connection.sendall(MALFORMED[what])
        status, headers, body = parts(connection.recv(65536))
    assert status == 400
    assert headers[b"x-fal-request-id"]
    assert json.loads(body)["error_type"] == "bad_request"
    with small.client() as client:
        assert client.post("/tester/hello", content=b"{}").status_code == 200
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"POST /tester/hello HTTP/1.1\r\nhost: x\r\n" + b"a: " + b"b" * 20_000 + b"\r\n\r\n",
        b"POST /tester/hello HTTP/1.1\r\nhost: x\r\n" + b"".join(b"a%d: b\r\n" % n for n in range(3000)) + b"\r\n",
        b"POST /tester/hello?" + b"q" * 20_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n",
        b"POST /tester/hello HTTP/1.1\r\nhost: x\r\nendless: " + b"b" * 40_000,
    ],
    ids=["one large header", "many headers", "a long path", "a header that never ends"],
)
def test_a_head_over_the_limit_is_a_431(small: RunningGateway, request_bytes: bytes) -> None:
    status, headers, body = parts(exchange(small.address, request_bytes))
    assert (status, headers[b"connection"]) == (431, b"close")
    assert "16384 bytes" in json.loads(body)["detail"]


def test_a_head_that_never_ends_is_cut_off(small: RunningGateway) -> None:
    assert exchange(small.address, b"POST /tester/hello HTTP/1.1\r\nhost: x\r\n") == b""
    assert exchange(small.address, b"") == b""
    assert exchange(small.address, b"\r\n\r\n") == b""


def test_a_body_that_never_ends_is_cut_off(small: RunningGateway) -> None:
    request = b"POST /tester/hello HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n{"
    status, _, body = parts(exchange(small.address, request))
    assert (status, json.loads(body)["detail"]) == (400, "The body did not arrive in time.")


def test_a_connection_that_does_nothing_more_is_closed(small: RunningGateway) -> None:
    request = b"POST /tester/hello HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}"
    assert parts(exchange(small.address, request))[0] == 200


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("path", ["/tester/hello", "/queue/tester/hello", "/api/v1/deployments"])
def test_a_body_over_the_limit_is_a_413(small: RunningGateway, declared: bool, path: str) -> None:
    blocks = [b"x" * 50_000, b"x" * 50_000, b"x"]
    with small.owner_client() as client:
        answer = client.post(path, content=b"".join(blocks) if declared else iter(blocks))
        assert answer.status_code == 413
        assert answer.json()["error_type"] == "bad_request"
        assert answer.headers["x-fal-request-id"]


def test_a_body_at_the_limit_passes(small: RunningGateway) -> None:
    with small.client() as client:
        assert len(client.post("/tester/hello", content=b"x" * 100_000).content) == 100_000


def test_bodies_of_all_callers_together_are_bounded(small: RunningGateway) -> None:
    head = b"POST /tester/hello HTTP/1.1\r\nhost: x\r\ncontent-length: 90000\r\n\r\n"
    with socket.create_connection(small.address) as first, small.client() as client:
        first.sendall(head + b"x" * 40_000)
        answer = client.post("/tester/hello", content=b"x" * 80_000)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert client.post("/tester/hello", content=b"{}").status_code == 200


def test_requests_on_one_connection_are_answered_in_order(small: RunningGateway) -> None:
    request = b"POST /tester/hello HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n\r\n%d"
    last = b"POST /tester/hello HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\nconnection: close\r\n\r\n3"
    answer = exchange(small.address, request % 1 + request % 2 + last)
    bodies = [part.split(b"\r\n\r\n", 1)[1][:1] for part in answer.split(b"HTTP/1.1 200 ")[1:]]
    assert bodies == [b"1", b"2", b"3"]


def test_a_request_in_many_small_pieces_is_understood(small: RunningGateway) -> None:
    request = b"POST /tester/hello HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\nconnection: close\r\n\r\nabcd"
    with socket.create_connection(small.address, 5) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in request:
            connection.sendall(bytes((byte,)))
        received = b""
        while block := connection.recv(65536):
            received += block
    assert received.endswith(b"abcd")


def test_a_chunked_body_with_trailers_is_understood(small: RunningGateway) -> None:
    request = (
        b"POST /tester/hello HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n"
        b"2\r\nab\r\n2\r\ncd\r\n0\r\nx-trailer: 1\r\nauthorization: Key a:b\r\n\r\n"
    )
    assert exchange(small.address, request).endswith(b"abcd")
    claim = small.workers[0].claims[-1]
    assert "x-trailer" not in dict(claim.headers)


def test_a_caller_who_asks_before_sending_is_told_to_go_on(small: RunningGateway) -> None:
    head = b"POST /tester/hello HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: %d\r\n\r\n"
    with socket.create_connection(small.address, 5) as connection:
        connection.sendall(head % 4)
        assert connection.recv(4096) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"abcd")
        assert connection.recv(4096).endswith(b"abcd")
    with socket.create_connection(small.address, 5) as connection:
        connection.sendall(head % 200_000)
        assert connection.recv(4096).startswith(b"HTTP/1.1 413")


def test_a_websocket_is_refused_politely(small: RunningGateway) -> None:
    request = (
        b"GET /tester/hello/realtime HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
        b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    with socket.create_connection(small.address, 5) as connection:
        connection.sendall(request)
        assert connection.recv(65536).startswith(b"HTTP/1.1 ")
