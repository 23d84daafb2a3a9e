"""A function that starts a web server of its own: the runner starts it, waits for its port and passes requests on."""

from __future__ import annotations

import json
import signal
import socket
import textwrap
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from fal._runner.protocol import (
    Cancel,
    Response,
    ResponseChunk,
    ResponseEnd,
    ResponseStart,
    SocketAccept,
    SocketClose,
    SocketMessage,
    StartFailed,
)
from fal._spec import WEBSOCKET

from tests.runner.harness import Runner, header, start
from tests.support.waiting import wait_until

#: A server of the standard library's sockets alone: it says what it was sent, in ways that clients find hard.
SERVER = """
import base64, hashlib, json, os, socket, struct, threading, time
import fal

LEFT = os.environ.get("LEFT")

def read_head(peer):
    data = b""
    while b"\\r\\n\\r\\n" not in data:
        more = peer.recv(65536)
        if not more:
            return None
        data += more
    return data.partition(b"\\r\\n\\r\\n")

def answer(peer):
    with peer:
        found = read_head(peer)
        if found is None:
            return
        head, _, body = found
        first, *lines = head.decode().split("\\r\\n")
        headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in lines)}
        while len(body) < int(headers.get("content-length", 0)):
            body += peer.recv(65536)
        method, target, _ = first.split(" ")
        path = target.partition("?")[0]
        told = {"method": method, "target": target, "headers": headers, "body": len(body), "base": BASE}
        told = json.dumps(told).encode()
        if path == "/chunked":
            peer.sendall(b"HTTP/1.1 103 Early Hints\\r\\nlink: x\\r\\n\\r\\n")
            peer.sendall(b"HTTP/1.1 200 OK\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n")
            for piece in (b"one", b"two"):
                peer.sendall(b"%x;ext=1\\r\\n%b\\r\\n" % (len(piece), piece))
                time.sleep(0.05)
            peer.sendall(b"0\\r\\nTrailer: x\\r\\n\\r\\n")
        elif path == "/until-closed":
            peer.sendall(b"HTTP/1.0 201 Made\\r\\nX-Kind: old\\r\\n\\r\\nall of it")
        elif path == "/forever":
            peer.sendall(b"HTTP/1.1 200 OK\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n")
            try:
                while True:
                    peer.sendall(b"4\\r\\ntick\\r\\n")
                    time.sleep(0.02)
            except OSError:
                print("the caller has gone", flush=True)
        elif path == "/silent":
            print("silent", flush=True)
            try:
                peer.recv(1)
            except OSError:
                pass
            print("nobody waits any more", flush=True)
        elif path == "/half":
            peer.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 100\\r\\n\\r\\nhalf")
        elif path == "/half-stream":
            peer.sendall(b"HTTP/1.1 200 OK\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n4\\r\\nhalf\\r\\n")
        elif path == "/nothing":
            pass
        elif path == "/noise":
            peer.sendall(b"SSH-2.0-OpenSSH\\r\\n\\r\\n")
        elif path == "/socket" and headers.get("upgrade") == "websocket":
            talk(peer, headers)
        else:
            peer.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\nX-Two: a\\r\\nX-Two: b\\r\\n\\r\\n" % len(told))
            if method != "HEAD":
                peer.sendall(told)

def frame(peer):
    first, second = peer.recv(2, socket.MSG_WAITALL)
    size = second & 127
    if size == 126:
        size = struct.unpack(">H", peer.recv(2, socket.MSG_WAITALL))[0]
    elif size == 127:
        size = struct.unpack(">Q", peer.recv(8, socket.MSG_WAITALL))[0]
    assert second & 128, "clients mask"
    mask, data = peer.recv(4, socket.MSG_WAITALL), peer.recv(size, socket.MSG_WAITALL)
    return first & 15, bytes(b ^ mask[n % 4] for n, b in enumerate(data))

def talk(peer, headers):
    key = headers["sec-websocket-key"].encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
    accept = base64.b64encode(hashlib.sha1(key).digest())
    peer.sendall(b"HTTP/1.1 101 Switching\\r\\nUpgrade: websocket\\r\\nConnection: Upgrade\\r\\nX-Mine: 1\\r\\n"
                 b"Sec-WebSocket-Protocol: chat\\r\\nSec-WebSocket-Accept: " + accept + b"\\r\\n\\r\\n")
    peer.sendall(b"\\x89\\x02hi")                       # a ping
    assert frame(peer) == (10, b"hi")
    peer.sendall(b"\\x01\\x03two\\x80\\x06 parts")        # one message in two frames
    while True:
        opcode, data = frame(peer)
        if opcode == 8:
            print("closed with", struct.unpack(">H", data[:2])[0] if data else None, data[2:].decode(), flush=True)
            peer.sendall(b"\\x88\\x00")
            return
        if data == b"bye":
            peer.sendall(b"\\x88\\x06" + struct.pack(">H", 4001) + b"done")
            return
        peer.sendall(bytes([0x80 | opcode, 126]) + struct.pack(">H", len(data)) + data)

BASE = []

def load():
    return "loaded"

@fal.function(exposed_port=PORT, setup_function=load)
def serve(first):
    BASE.append(first)
    with socket.create_server(("0.0.0.0", PORT)) as listener:
        print("listening on", listener.getsockname()[1], os.environ["PORT"], flush=True)
        while True:
            threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()
"""


@pytest.fixture
def port() -> int:
    """One that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        number: int = listener.getsockname()[1]
        return number


def serve(folder: Path, port: int, source: str = SERVER, **fields: Any) -> Runner:
    text = textwrap.dedent(source).replace("PORT)", f"{port})").replace("PORT,", f"{port},")
    folder.mkdir(exist_ok=True)
    return start(folder, text, "serve", exposed_port=port, **fields)


def hear_until(runner: Runner, *lines: str) -> None:
    while set(lines) - set(runner.logs("STDOUT")):
        runner.hear()


def hear_all(runner: Runner) -> None:
    with suppress(EOFError):
        while True:
            runner.hear()


def test_whole_answers_of_any_method(tmp_path: Path, port: int) -> None:
    with serve(tmp_path, port) as runner:
        assert runner.ready().endpoints == ["/"]
        answer = runner.call(
            b"x" * 200_000, "/a b/%41", method="PUT", query=b"q=1&r=%20", headers=[(b"host", b"h"), (b"x-a", b"b")]
        )
        assert answer.status == 200
        assert [value for name, value in answer.headers if name == b"x-two"] == [b"a", b"b"]
        told = json.loads(answer.body)
        assert (told["method"], told["target"], told["body"]) == ("PUT", "/a%20b/%2541?q=1&r=%20", 200_000)
        assert told["headers"]["host"] == "h"
        assert told["headers"]["content-length"] == "200000"
        assert told["base"] == ["loaded"], "the setup function's value comes first"
        for method in ("GET", "DELETE", "HEAD"):
            answer = runner.call(b"", "/", method=method)
            assert (answer.status, bool(answer.body)) == (200, method != "HEAD")
        listening = next(line for line in runner.logs("STDOUT") if line.startswith("listening on"))
        moved, own = listening.split()[2:]
        assert moved == own != str(port), "a bind of the exposed port takes the worker's own"


def test_answers_of_unknown_length_are_streamed(tmp_path: Path, port: int) -> None:
    with serve(tmp_path, port) as runner:
        runner.ready()
        runner.request(path="/chunked")
        assert runner.expect(ResponseStart).status == 200
        assert [runner.expect(ResponseChunk).body for _ in range(2)] == [b"one", b"two"]
        assert runner.expect(ResponseEnd).error is None
        runner.request("r2", path="/until-closed")
        started = runner.expect(ResponseStart)
        assert (started.status, header(started.headers, b"x-kind")) == (201, b"old")
        assert runner.expect(ResponseChunk).body == b"all of it"
        runner.request("r3", path="/chunked", stream=False)
        assert runner.expect(Response).body == b"onetwo"


def test_a_cancel_closes_the_connection_to_the_server(tmp_path: Path, port: int) -> None:
    with serve(tmp_path, port) as runner:
        runner.ready()
        runner.request("r1", path="/forever")
        runner.expect(ResponseChunk)
        runner.send(Cancel("r1"))
        runner.expect(ResponseEnd)
        runner.request("r2", path="/silent")
        hear_until(runner, "silent")
        runner.send(Cancel("r2"))
        assert runner.expect(Response).status == 499
        hear_until(runner, "the caller has gone", "nobody waits any more")


def test_answers_that_are_none(tmp_path: Path, port: int) -> None:
    with serve(tmp_path, port) as runner:
        runner.ready()
        for path, why in (
            ("/nothing", "closed the connection without an answer"),
            ("/noise", "does not speak HTTP/1.1"),
            ("/half", "closed the connection in the middle of its answer"),
        ):
            answer = runner.call(path=path)
            assert (answer.status, json.loads(answer.body)["detail"]) == (502, f"The web server of serve() {why}.")
        runner.request(path="/half-stream")
        runner.expect(ResponseChunk)
        assert "in the middle of its answer" in (runner.expect(ResponseEnd).error or "")
        assert runner.call().status == 200


def connect(runner: Runner, path: str = "/socket") -> None:
    headers = [(b"host", b"h"), (b"sec-websocket-protocol", b"chat, other")]
    runner.request("c1", path=path, method=WEBSOCKET, headers=headers)


def test_a_websocket_is_passed_on(tmp_path: Path, port: int) -> None:
    with serve(tmp_path, port) as runner:
        runner.ready()
        connect(runner)
        accepted = runner.expect(SocketAccept)
        assert accepted.subprotocol == "chat"
        assert (b"x-mine", b"1") in accepted.headers
        assert runner.expect(SocketMessage).data == "two parts"
        for data in ("text ä", b"\x00\xff" * 300):
            runner.send(SocketMessage("c1", 1, data))
            assert runner.expect(SocketMessage).data == data
        runner.send(SocketMessage("c1", 1, "bye"))
        closed = runner.expect(SocketClose)
        assert (closed.code, closed.reason) == (4001, "done")
        assert runner.expect(Response).status == 101


def test_the_callers_close_reaches_the_server(tmp_path: Path, port: int) -> None:
    with serve(tmp_path, port) as runner:
        runner.ready()
        connect(runner)
        runner.expect(SocketMessage)
        runner.send(SocketClose("c1", 1, 4002, "enough"))
        assert runner.expect(Response).status == 101
        hear_until(runner, "closed with 4002 enough")
        connect(runner, "/other")
        refused = runner.expect(Response)
        assert (refused.status, json.loads(refused.body)["method"]) == (200, "GET")


def test_two_workers_on_one_host(tmp_path: Path, port: int) -> None:
    """Both would listen on the same port, and the second one's requests would go to the first."""
    with serve(tmp_path / "one", port) as first, serve(tmp_path / "two", port) as second:
        for runner in (first, second):
            runner.ready()
            assert runner.call().status == 200
        assert (
            len({next(line for line in runner.logs("STDOUT") if "listening" in line) for runner in (first, second)})
            == 2
        )


OTHER_PROGRAM = """
import subprocess, sys
import fal

@fal.function(exposed_port=PORT)
def serve():
    subprocess.run([sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(PORT)], check=True)
"""


def test_a_server_that_is_another_program_keeps_its_port(tmp_path: Path, port: int) -> None:
    with serve(tmp_path / "one", port, OTHER_PROGRAM) as first:
        first.ready()
        assert first.call(method="GET").status == 200
        with serve(tmp_path / "two", port, OTHER_PROGRAM) as second:
            error = second.expect(StartFailed).error
            assert f"Port {port} is taken on this host" in error
            assert 'int(os.environ["PORT"])' in error
            assert second.wait() == 3
        assert first.call(method="GET", id="r2").status == 200


def test_a_function_that_ends_before_it_listens(tmp_path: Path, port: int) -> None:
    source = """
    import fal

    @fal.function(exposed_port=PORT)
    def serve():
        print("no server here")
    """
    with serve(tmp_path, port, source) as runner:
        failed = runner.expect(StartFailed)
        assert failed.stage == "web server"
        assert failed.error == f"serve() returned before anything listened on port {port}"
        assert runner.wait() == 3


def test_a_function_that_fails_shows_where(tmp_path: Path, port: int) -> None:
    source = """
    import fal

    @fal.function(exposed_port=PORT)
    async def serve():
        raise LookupError("no certificate")
    """
    with serve(tmp_path, port, source) as runner:
        failed = runner.expect(StartFailed)
        assert failed.error == "serve() raised LookupError: no certificate"
        assert 'raise LookupError("no certificate")' in failed.traceback
        assert "web_server.py" not in failed.traceback, "the frames are the user's own"


def test_sigterm_ends_a_server_that_knows_nothing_of_it(tmp_path: Path, port: int) -> None:
    with serve(tmp_path, port) as runner:
        runner.ready()
        runner.request(path="/chunked", stream=False)
        runner.process.send_signal(signal.SIGTERM)
        assert runner.expect(Response).body == b"onetwo", "what runs is finished"
        assert runner.wait() == 0


UVICORN = """
import asyncio, os
import fal

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                print("shut down", flush=True)
                return
    if scope["path"] == "/openapi.json":
        body = b'{"openapi": "3.1.0", "paths": {"/mine": {}}}'
    else:
        await asyncio.sleep(0.3)
        body = b"slow" if scope["server"][1] == int(os.environ["PORT"]) else b"not on its own port"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})

@fal.function(exposed_port=PORT)
def serve():
    import uvicorn
    uvicorn.run(app, host="127.0.0.1", port=PORT)
"""


def test_a_real_server_shuts_down_in_its_own_way(tmp_path: Path, port: int) -> None:
    with serve(tmp_path, port, UVICORN) as runner:
        assert json.loads(runner.ready().openapi)["paths"] == {"/mine": {}}
        runner.request(path="/")
        runner.process.send_signal(signal.SIGTERM)
        assert runner.expect(Response).body == b"slow"
        hear_all(runner)
        assert runner.wait() == 0
        assert "shut down" in runner.logs("STDOUT")


ENDING = """
import socket
import fal

@fal.function(exposed_port=PORT)
def serve():
    with socket.create_server(("127.0.0.1", PORT)) as listener:
        while True:
            with listener.accept()[0] as peer:
                if b"POST" in peer.recv(65536):
                    return
"""


def test_a_server_that_ends_takes_the_runner_with_it(tmp_path: Path, port: int) -> None:
    """What was being answered must not look like an answer: a queued request runs again on another runner."""
    with serve(tmp_path, port, ENDING) as runner:
        runner.ready()
        runner.request()
        hear_all(runner)
        assert runner.wait() == 1
        assert not runner.all(Response)
        assert "serve() returned, and its web server is gone. The runner ends with it." in runner.logs("ERROR")


def test_a_runner_without_its_supervisor_ends(tmp_path: Path, port: int) -> None:
    with serve(tmp_path, port) as runner:
        runner.ready()
        runner.sock.close()
        wait_until(lambda: runner.process.poll() is not None, "the orphan to end", timeout=10)
