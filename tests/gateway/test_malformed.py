"""What nobody should send: by a table, and generated. A 4xx or a closed connection, never a 5xx, hardly a log line."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from keepwarm import tls
from tests.gateway.malformed import APP, DEEP, LADDER, REFUSED, TAKEN, deploy, get, head
from tests.gateway.platform import HOST, RunningGateway
from tests.gateway.talking import Answer, at_most_one_line, logged, serves_others, talk

#: The same requests in every run; another number makes others.
SEED = int(os.environ.get("KEEPWARM_FUZZ_SEED", "20260807"))
EXAMPLES = int(os.environ.get("KEEPWARM_FUZZ_EXAMPLES", "600"))


@pytest.fixture(scope="module")
def impatient(redis_server: str, data_dir: Path) -> Iterator[RunningGateway]:
    """A gateway that closes at once what it waits for in vain, with a worker for tester/hello."""
    limits = {"header_timeout": 0.3, "body_timeout": 0.3, "idle_timeout": 1}
    gateway = RunningGateway(redis_server, data_dir, **limits).start()
    gateway.worker(gateway.app("hello"))
    gateway.call(gateway.store.hosts.report(HOST, ttl_s=600))
    gateway.store.bundles.put(hashlib.sha256(b"").hexdigest(), b"")
    yield gateway
    gateway.stop()


def check(answer: Answer, what: object) -> None:
    """A refusal as all are: below 500, JSON with a reason, with an id."""
    assert 400 <= answer.status < 500, (what, answer)
    assert answer.headers[b"x-fal-request-id"], (what, answer)
    if answer.body:
        said = json.loads(answer.body)
        assert said.get("detail") or said.get("status"), (what, answer)


@pytest.mark.parametrize("what", REFUSED)
def test_it_is_refused(impatient: RunningGateway, what: str, caplog: pytest.LogCaptureFixture) -> None:
    sent = REFUSED[what].replace(b"Key KEY", b"Key " + impatient.key.encode())
    with at_most_one_line(caplog, what):
        answers = talk(impatient.address, sent)
    assert len(answers) <= 1, (what, answers)
    for answer in answers:
        check(answer, what)
    serves_others(impatient, APP)


@pytest.mark.parametrize("what", TAKEN)
def test_it_is_taken_for_what_it_is(impatient: RunningGateway, what: str, caplog: pytest.LogCaptureFixture) -> None:
    sent, statuses = TAKEN[what]
    with at_most_one_line(caplog, what):
        answers = talk(impatient.address, sent.replace(b"Key KEY", b"Key " + impatient.key.encode()))
    assert [answer.status for answer in answers] == statuses, answers
    serves_others(impatient, APP)


@pytest.mark.parametrize(
    "asked",
    [
        b"bytes=", b"bytes=-", b"bytes=a-b", b"bytes=--1", b"bytes=1-0", b"bytes=0-0,2-3", b"bytes=0x0-0x1",
        b"bytes=\xd9\xa1-", b"lines=0-1", b"bytes=0-99999999999999999999", b"bytes = 0-1", b"\xff", b"bytes=99-",
        b"bytes=-0", b"bytes=" + b"0-1," * 2000, b"bytes=" + b"9" * 5000 + b"-",
    ],
)  # fmt: skip
def test_a_range_that_cannot_be_read_is_no_fault_of_the_gateway(
    impatient: RunningGateway, asked: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """HTTP lets a server answer a range that it cannot read with the whole file."""
    impatient.store.files.put(b"abcd", "0" * 32, "a.txt", "text/plain")
    with at_most_one_line(caplog, asked):
        [answer] = talk(impatient.address, get(f"/cdn/files/{'0' * 32}/a.txt", b"range: " + asked))
    assert answer.status in (200, 206, 416)
    assert answer.body == b"abcd" or answer.status != 200


@pytest.mark.parametrize(
    "lines",
    [
        (b"upgrade: websocket",),
        (b"connection: upgrade", b"upgrade: websocket"),
        (b"connection: upgrade", b"upgrade: websocket", b"sec-websocket-version: 13"),
        (b"connection: upgrade", b"upgrade: websocket", b"sec-websocket-version: 13", b"sec-websocket-key: !"),
        (b"connection: upgrade", b"upgrade: websocket", b"sec-websocket-version: 99", b"sec-websocket-key: AAAA"),
        (b"connection: upgrade", b"upgrade: \xff"),
        (b"connection: upgrade", b"upgrade: h2c", b"http2-settings: AAAA"),
        (b"connection: upgrade, \xff", b"upgrade: websocket, websocket", b"sec-websocket-key: \x80"),
    ],
)
def test_an_upgrade_that_cannot_be(
    impatient: RunningGateway, lines: tuple[bytes, ...], caplog: pytest.LogCaptureFixture
) -> None:
    paths = [b"/tester/hello/realtime", b"/ws/tester/hello", b"/health", b"/nobody/here/ws"]
    heads = [b"\r\n".join([b"GET %s HTTP/1.1" % path, b"host: x", *lines, b"", b"\x81\xff\xff\xff"]) for path in paths]
    with ThreadPoolExecutor(4) as callers, logged(caplog) as said:
        for answers in callers.map(lambda sent: talk(impatient.address, sent), heads):
            assert all(answer.status < 500 for answer in answers), answers
        serves_others(impatient, APP)
    assert len(said) <= len(paths), said


def test_slow_senders_are_cut_off_and_hold_up_nobody(
    impatient: RunningGateway, caplog: pytest.LogCaptureFixture
) -> None:
    """A hundred at once: a byte of a head, half a head, a head without its body, a chunk without its end."""
    halves = [b"G", b"POST /tester/hello HTTP/1.1\r\nhost:", head(b"content-length: 9") + b"{"]
    halves.append(head(b"transfer-encoding: chunked") + b"5\r\nab")
    with ThreadPoolExecutor(100) as callers, at_most_one_line(caplog, "slow senders"):
        talking = [callers.submit(talk, impatient.address, halves[n % 4]) for n in range(100)]
        serves_others(impatient, APP)
        for each in talking:
            assert all(answer.status == 400 for answer in each.result())
    serves_others(impatient, APP)


@pytest.mark.parametrize("version", [b"HTTP/2.0", b"HTTP/0.9", b""])
def test_another_http_is_not_answered_as_ours(impatient: RunningGateway, version: bytes) -> None:
    """The parser takes requests of HTTP/0.9 and 2.0 too; their callers got an answer of HTTP/1.1."""
    [answer] = talk(impatient.address, b"GET /health %s\r\nhost: x\r\n\r\n" % version)
    assert (answer.status, b"not valid HTTP/1.1" in answer.body) == (400, True)


def test_a_length_with_thousands_of_zeros(impatient: RunningGateway) -> None:
    """It passed the parser; Python refused to read so many digits, and the answer was a 500."""
    [answer] = talk(impatient.address, head(b"content-length: " + b"0" * 5000 + b"2") + b"{}")
    assert (answer.status, b"at most 18 digits" in answer.body) == (400, True)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/v1/bundles/missing", b'{"hashes": [%s]}'),
        ("/rest/tokens", b'{"allowed_apps": [%s]}'),
        ("/api/v1/deployments", b'{"spec": %s}'),
    ],
)
def test_a_value_too_deep_to_be_shown(impatient: RunningGateway, path: str, body: bytes) -> None:
    """The refusal quoted what was wrong, and Python's repr of it ended in a RecursionError: a 500."""
    with impatient.owner_client() as client:
        answer = client.post(path, content=body % LADDER)
    assert (answer.status_code, "[[[" in answer.json()["detail"]) == (400, True)


def test_metadata_that_are_too_deep_to_be_stored(impatient: RunningGateway) -> None:
    """They were good JSON, but what writes JSON goes less deep than what reads it: a 500 in the middle of a deploy."""
    with impatient.owner_client() as client:
        for levels, status in ((90, 201), (900, 400)):
            answer = client.post("/api/v1/deployments", content=deploy(b"[" * levels + b"]" * levels))
            assert answer.status_code == status, answer.text


def test_half_a_form_leaves_no_file_open(impatient: RunningGateway) -> None:
    """The parser of forms did not mind that the end was missing, and left the file that it had begun to nobody."""
    half = b'--x\r\ncontent-disposition: form-data; name="file_upload"; filename="a"\r\n\r\nhalf'
    with impatient.owner_client() as client:
        at, form = "/rest/files/file/local//data/half", {"content-type": "multipart/form-data; boundary=x"}
        assert client.post(at, content=half, headers=form).status_code == 400
        assert client.post(at, content=half + b"\r\n--x--\r\n", headers=form).status_code == 200


def test_a_handshake_that_never_ends_is_cut_off(
    redis_server: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With TLS a connection that said nothing, or half a greeting, was kept for a minute whatever the limits said; and
    what is no TLS at all must not fill the log."""
    tls.ensure(tmp_path, tls.wanted_names("127.0.0.1", None))
    certificate = str(tmp_path / "tls" / "gateway.pem")
    gateway = RunningGateway(redis_server, tmp_path, tls_certificate=certificate, header_timeout=0.3).start()
    try:
        with logged(caplog) as lines:
            for sent in (b"", b"\x16\x03", get("/health"), b"\x16\x03\x01\x00\xff" + b"\xff" * 300):
                with socket.create_connection(gateway.address, 20) as connection:
                    connection.sendall(sent)
                    assert not connection.recv(1000).startswith(b"HTTP")
            trust = ssl.create_default_context(cafile=str(tmp_path / "tls" / "roots.pem"))
            url = f"https://127.0.0.1:{gateway.address[1]}/health"
            assert httpx.get(url, verify=trust, trust_env=False).status_code == 200
        assert lines == []
    finally:
        gateway.stop()


ODD = [
    b"",
    b" ",
    b"\0",
    b"\r",
    b"\n",
    b"\r\n",
    b"\xff",
    b"\xc3\x28",
    b"%",
    b"%00",
    b"%zz",
    b"../",
    b"//",
    b"-1",
    b"1e999",
]
ODD += [b"9" * 30, b"A" * 5000, b"chunked", b"{", b"[" * 2000, b"\xe2\x80\xae", b"NaN", b'"', b"\\", b"?", b"#", b"*"]
NAMES = [b"host", b"content-length", b"transfer-encoding", b"connection", b"expect", b"range", b"content-type"]
NAMES += [b"authorization", b"idempotency-key", b"upgrade", b"te", b"trailer", b"origin", b"if-none-match", b"accept"]
NAMES += [b"x-fal-" + name for name in (b"request-timeout", b"queue-priority", b"no-retry", b"store-io", b"target-url")]
NAMES += [b"x-fal-object-lifecycle-preference", b"x-fal-object-lifecycle", b"x-fal-file-name", b"x-fal-runner-hint"]
PATHS = [b"/", b"/health", b"/fal/proxy", b"/tester/hello", b"/queue/tester/hello", b"/run/tester/hello/generate"]
PATHS += [b"/queue/tester/hello/requests/x/status", b"/queue/tester/hello/requests/x/cancel", b"/cdn/files/x/y"]
PATHS += [b"/cdn/files/upload", b"/cdn/uploads/" + b"0" * 32, b"/rest/tokens", b"/rest/files/list//data"]
PATHS += [
    b"/rest/files/file//data/x",
    b"/rest/files/rename//data/x",
    b"/rest/storage/upload/initiate",
    b"/rest/logs/history",
]
PATHS += [b"/api/v1/keys", b"/api/v1/apps/tester/hello/scaling", b"/api/v1/deployments", b"/api/v1/bundles/missing"]
BODIES = [b"ODD", b'{"name": ODD}', b'{"name": "ODD"}', b'{"allowed_apps": [ODD]}', b'{"hashes": ["ODD"]}']
BODIES += [
    b'{"destination": "/data/ODD"}',
    b'{"spec": ODD, "files": []}',
    b'{"keep_alive": ODD}',
    b'{"file_name": "ODD"}',
]
BODIES += [b'{"content_type": ODD}', b'{"parts": [{"part_number": ODD, "etag": ""}]}', b'{"ODD": 1}']
NOT_HTTP = b"This is not valid HTTP"
odd = st.sampled_from(ODD) | st.binary(max_size=12)


@st.composite
def almost(draw: st.DrawFn) -> bytes:
    """A request with one thing wrong, mostly: a part that is odd, or damage anywhere."""
    wrong = draw(st.sampled_from(["path", "query", "header", "body", "escape", "line", "damage", "nothing"]))
    method = draw(st.sampled_from([b"GET", b"POST", b"PUT", b"PATCH", b"DELETE", b"HEAD", b"OPTIONS"]))
    target = draw(st.sampled_from(PATHS))
    if wrong == "path":
        at = draw(st.integers(1, len(target)))
        target = target[:at] + draw(odd) + target[at:]
    elif wrong == "escape":
        at = draw(st.integers(1, len(target)))
        target = target[:at] + quote(draw(odd), safe="").encode() + target[at:]
    elif wrong == "query":
        name = draw(
            st.sampled_from([b"a", b"fal_webhook", b"fal_jwt_token", b"limit", b"logs", b"signature", b"since"])
        )
        target += b"?job_id=x&%s=%s" % (name, quote(draw(odd), safe="").encode())
    body = draw(st.sampled_from([b"", b"{}", b'{"name": "x"}', b"--x\r\n\r\n--x--", DEEP[:3000]]))
    if wrong == "body":
        body = draw(st.sampled_from(BODIES)).replace(b"ODD", draw(odd))
    headers = [b"host: x", b"authorization: Key KEY", b"content-length: %d" % len(body), b"connection: close"]
    if wrong == "header":
        value = draw(odd).translate(None, b"\0\r\n")  # those are damage, which the parser sees to
        headers.append(b"%s: %s" % (draw(st.sampled_from(NAMES)), value))
    elif wrong == "line":
        headers.insert(draw(st.integers(0, 4)), draw(odd) + draw(st.sampled_from([b"", b":", b": x"])))
    sent = b"\r\n".join([b"%s %s HTTP/1.1" % (method, target), *headers, b"", body])
    if wrong == "damage":
        at = draw(st.integers(0, len(sent)))
        sent = sent[:at] + draw(odd) + sent[at + draw(st.integers(0, 20)) :]
    return sent


def test_whatever_comes_is_answered_below_500(impatient: RunningGateway, caplog: pytest.LogCaptureFixture) -> None:
    """Many at a time, because the gateway waits for the rest of what is cut short."""
    print(f"KEEPWARM_FUZZ_SEED={SEED} KEEPWARM_FUZZ_EXAMPLES={EXAMPLES}")
    requests: list[bytes] = []

    @seed(SEED)
    @settings(
        max_examples=EXAMPLES,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(almost())
    def generate(request: bytes) -> None:
        requests.append(request)

    generate()
    key = b"Key " + impatient.key.encode()
    understood = 0
    with ThreadPoolExecutor(32) as callers, logged(caplog) as lines:
        talking = [callers.submit(talk, impatient.address, sent.replace(b"Key KEY", key)) for sent in requests]
        serves_others(impatient, APP)
        for sent, each in zip(requests, talking, strict=True):
            assert all(answer.status < 500 for answer in each.result()), (sent, each.result(), lines)
            understood += any(NOT_HTTP not in answer.body for answer in each.result())
    assert len(lines) <= len(requests) / 10, lines
    assert understood > len(requests) / 2  # the parser is not all that is tried
