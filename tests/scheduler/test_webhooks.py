"""Tries to deliver webhooks to a real server: what is sent, what counts as delivered, and when the next try is due."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import random
import socket
import ssl
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from scheduler.control.webhooks import LONGEST_WISH_S, SCHEDULE_S, Try, WebhookSender, delay_before_next, payload
from scheduler.store.records import Outcome, RequestRecord, RequestState
from scheduler.store.signing import load_or_create, public_key_set
from tests.scheduler.receiver import Received, receiver
from tests.support.loop import run

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


def record(status: int = 200, body: bytes = b'{"answer": 42}', **fields: Any) -> RequestRecord:
    state = RequestState.COMPLETED if status < 400 else RequestState.ERROR
    values: dict[str, Any] = {
        "app": "owner/app",
        "request_id": "r-1",
        "state": state,
        "mode": "queued",
        "attempt": 1,
        "submitted_at_ms": 1,
        "outcome": Outcome(status, (("content-type", "application/json"),), body),
    }
    return RequestRecord(**(values | fields))


def deliver(
    path: str, *, total_timeout: float = 15.0, found: RequestRecord | None = None, ahead: int = 0
) -> tuple[Try, list[Received]]:
    async def scenario() -> tuple[Try, list[Received]]:
        async with receiver() as server:
            sender = WebhookSender(KEY, allow_private=True, total_timeout=total_timeout)
            try:
                ended = await sender.deliver(server.url(path), found or record(), int(time.time()) + ahead)
            finally:
                await sender.close()
            return ended, server.received

    return run(scenario())


def verify(received: Received, jwks: dict[str, Any]) -> bool:
    """The recipe of fal's documentation for receivers, as written there: no padding is added before decoding."""
    headers = received.headers
    timestamp = headers["x-fal-webhook-timestamp"]
    if abs(time.time() - int(timestamp)) > 300:
        return False
    message = "\n".join(
        [
            headers["x-fal-webhook-request-id"],
            headers["x-fal-webhook-user-id"],
            timestamp,
            hashlib.sha256(received.body).hexdigest(),
        ]
    ).encode()
    for key in jwks["keys"]:
        try:
            public = Ed25519PublicKey.from_public_bytes(base64.urlsafe_b64decode(key["x"]))
            public.verify(bytes.fromhex(headers["x-fal-webhook-signature"]), message)
            return True
        except InvalidSignature:
            continue
    return False


def test_a_result_arrives_signed() -> None:
    ended, (received,) = deliver("/200?token=abc")
    assert ended == Try(True, "status 200")
    assert received.path == "/200?token=abc"
    assert received.headers["content-type"] == "application/json"
    assert received.headers["x-fal-webhook-user-id"] == "owner"
    assert json.loads(received.body) == {
        "request_id": "r-1",
        "gateway_request_id": "r-1",
        "status": "OK",
        "payload": {"answer": 42},
        "error": None,
    }
    assert verify(received, public_key_set(KEY))
    assert not verify(Received(received.path, received.headers, received.body + b" "), public_key_set(KEY))


@pytest.mark.parametrize(("ahead", "taken"), [(-310, False), (-290, True), (290, True), (310, False)])
def test_a_receiver_takes_what_a_sender_signs_whose_clock_is_less_than_five_minutes_off(
    ahead: int, taken: bool
) -> None:
    """F29."""
    _, (received,) = deliver("/200", ahead=ahead)
    assert verify(received, public_key_set(KEY)) == taken


def test_the_key_set_can_be_published_and_the_key_is_made_once(tmp_path: Path) -> None:
    """Gateway and jobs both ask for the key when a platform first starts. Each used to make one, and what one signed
    the other's key set did not verify."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as pool:
        keys = list(pool.map(lambda _: load_or_create(tmp_path).private_bytes_raw(), range(32)))
    assert len(set(keys)) == 1
    (path,) = tmp_path.iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    (published,) = public_key_set(load_or_create(tmp_path))["keys"]
    assert published["x"].endswith("=")
    path.write_text("not a key")
    with pytest.raises(ValueError, match="not a webhook signing key"):
        load_or_create(tmp_path)


def test_a_failed_request_arrives_as_an_error_with_its_body() -> None:
    _, (received,) = deliver("/200", found=record(422, b'{"detail": [{"msg": "field required"}]}'))
    assert json.loads(received.body) == {
        "request_id": "r-1",
        "gateway_request_id": "r-1",
        "status": "ERROR",
        "payload": {"detail": [{"msg": "field required"}]},
        "error": "Invalid status code: 422",
    }


@pytest.mark.parametrize("body", [b"", b"\x89PNG", b"<html>", b'{"a": NaN}'])
def test_a_result_that_is_not_json_says_so_and_is_still_ok(body: bytes) -> None:
    sent = json.loads(payload(record(body=body)))
    assert (sent["status"], sent["payload"]) == ("OK", None)
    assert "not JSON" in sent["payload_error"]


def test_numbers_arrive_as_the_app_wrote_them() -> None:
    assert b'"payload":{"big": 123456789012345678901234567890, "exact": 1.10}' in payload(
        record(body=b'{"big": 123456789012345678901234567890, "exact": 1.10}')
    )


def test_redirects_are_not_followed() -> None:
    ended, received = deliver("/301")
    assert ended == Try(False, "status 301 (redirects are not followed; give the address itself)", final=True)
    assert [r.path for r in received] == ["/301"]


def test_a_receiver_that_is_gone_for_good_is_given_up() -> None:
    assert deliver("/410")[0] == Try(False, "status 410", final=True)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/500", "status 500: out of order"),
        ("/429-soon", "status 429"),
        ("/silent", "no answer within 0.5 s"),
        ("/slow", "no answer within 0.5 s"),  # one byte after the other, each well within any time-out of its own
        ("/cut-off", "RemoteProtocolError: peer closed connection"),
        ("/no-http", "RemoteProtocolError:"),
        ("/bomb", "status 500: "),
    ],
)
def test_f31_whatever_a_receiver_does_is_a_failed_try_that_is_made_again(path: str, said: str) -> None:
    ended, received = deliver(path, total_timeout=0.5 if said.startswith("no answer") else 15)
    assert (ended.delivered, ended.final) == (False, False)
    assert ended.detail.startswith(said)
    assert len(ended.detail) < 300
    assert [r.path for r in received] == [path], "one call, one try"


def test_a_receiver_that_asks_for_time_gets_it() -> None:
    """A receiver that answered 429 with Retry-After: 120 was called again after five seconds."""
    ended, _ = deliver("/429")
    assert ended == Try(False, "status 429", retry_after=120)
    draw = random.Random(1)
    for tries in (1, 2, 9):
        delay = delay_before_next(tries, draw, asked_for=ended.retry_after)
        assert delay is not None
        assert delay >= 120
    assert delay_before_next(1, draw, asked_for=1.0) == pytest.approx(SCHEDULE_S[1], rel=0.2), "the schedule is longer"
    later, _ = deliver("/429-date")
    assert later.retry_after is not None
    assert later.retry_after > LONGEST_WISH_S
    delay = delay_before_next(1, draw, asked_for=later.retry_after)
    assert delay is not None
    assert LONGEST_WISH_S <= delay <= 1.2 * LONGEST_WISH_S
    assert delay_before_next(len(SCHEDULE_S), draw, asked_for=1.0) is None


def self_signed(folder: Path, name: str) -> ssl.SSLContext:
    """TLS for a server that calls itself ``name`` and that nobody vouches for."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    made = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(datetime(2020, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(2100, 1, 1, tzinfo=UTC))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(made.public_bytes(Encoding.PEM))
    plain = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "key.pem").write_bytes(plain)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return context


def test_f31_tls_is_checked_against_the_name_in_the_url(tmp_path: Path) -> None:
    """The connection goes to an address, but the certificate must be for the host of the URL."""

    async def resolve(host: str, port: int) -> Sequence[str]:
        return ["127.0.0.1"]

    async def scenario() -> None:
        server_tls = self_signed(tmp_path, "hooks.example")
        knowing = ssl.create_default_context(cafile=tmp_path / "cert.pem")
        async with receiver(server_tls) as server:
            for trust, host, said in (
                (None, "hooks.example", "certificate verify failed"),
                (knowing, "other.example", "Hostname mismatch"),
                (knowing, "hooks.example", "status 200"),
            ):
                sender = WebhookSender(KEY, allow_private=True, resolve=resolve, tls=trust)
                ended = await sender.deliver(server.url("/200", host=host), record(), int(time.time()))
                await sender.close()
                assert said in ended.detail
                assert not ended.final
            assert len(server.received) == 1, "nothing is sent before the certificate is believed"

    run(scenario())


def test_a_server_that_never_answers_costs_the_total_timeout_and_no_more() -> None:
    started = time.monotonic()
    ended, _ = deliver("/silent", total_timeout=0.3)
    assert ended == Try(False, "no answer within 0.3 s")
    assert time.monotonic() - started < 5


def test_a_success_whose_body_never_ends_is_delivered() -> None:
    assert deliver("/drip", total_timeout=5)[0] == Try(True, "status 200")


def test_a_huge_answer_is_not_read() -> None:
    async def scenario() -> None:
        async with receiver() as server:
            sender = WebhookSender(KEY, allow_private=True)
            ended = await sender.deliver(server.url("/huge"), record(), int(time.time()))
            await sender.close()
            assert not ended.delivered
            assert len(ended.detail) < 300
            # What the kernel's socket buffers take in on both sides is sent; the gigabyte is not.
            assert server.sent_bytes < 30_000_000

    run(scenario())


def test_nobody_listens() -> None:
    async def scenario() -> Try:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            port = unused.getsockname()[1]
        sender = WebhookSender(KEY, allow_private=True)
        ended = await sender.deliver(f"http://127.0.0.1:{port}/", record(), int(time.time()))
        await sender.close()
        return ended

    ended = run(scenario())
    assert (ended.delivered, ended.final) == (False, False)
    assert ended.detail.startswith("ConnectError")


def test_the_checked_address_is_called_with_the_original_host() -> None:
    """Between the check and the connect the name could change to a private address; so the name is resolved once and
    the connection goes to the address that was checked."""
    asked = []

    async def resolve(host: str, port: int) -> Sequence[str]:
        asked.append(host)
        return ["127.0.0.1"]

    async def scenario() -> None:
        async with receiver() as server:
            sender = WebhookSender(KEY, allow_private=True, resolve=resolve)
            url = server.url("/200", host="hooks.example")
            assert (await sender.deliver(url, record(), int(time.time()))).delivered
            await sender.close()
            assert asked == ["hooks.example"]
            assert server.received[0].headers["host"] == f"hooks.example:{server.port}"

    run(scenario())


def test_the_next_address_is_tried_when_one_refuses() -> None:
    async def resolve(host: str, port: int) -> Sequence[str]:
        return ["127.0.0.2", "127.0.0.1"]

    async def scenario() -> None:
        async with receiver() as server:
            sender = WebhookSender(KEY, allow_private=True, resolve=resolve)
            assert (await sender.deliver(server.url("/200", host="x.example"), record(), int(time.time()))).delivered
            await sender.close()

    run(scenario())


def test_private_targets_are_given_up_at_once() -> None:
    async def scenario() -> None:
        async with receiver() as server:
            sender = WebhookSender(KEY)
            ended = await sender.deliver(f"http://127.0.0.1:80/?{server.port}", record(), int(time.time()))
            await sender.close()
            assert (ended.delivered, ended.final) == (False, True)
            assert "KEEPWARM_ALLOW_PRIVATE_WEBHOOKS=1" in ended.detail

    run(scenario())


def test_a_result_that_is_gone_is_given_up() -> None:
    ended, received = deliver("/200", found=record(outcome=None))
    assert ended.final
    assert received == []


def test_a_proxy_of_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert deliver("/200")[0].delivered


def test_many_tries_at_once() -> None:
    async def scenario() -> None:
        async with receiver() as server:
            sender = WebhookSender(KEY, allow_private=True)
            tries = [sender.deliver(server.url(f"/200?{n}"), record(), int(time.time())) for n in range(50)]
            assert all(ended.delivered for ended in await asyncio.gather(*tries))
            await sender.close()

    run(scenario())


def test_the_schedule_is_spread_and_ends() -> None:
    draw = random.Random(1)
    assert delay_before_next(0) == 0
    for tries, nominal in enumerate(SCHEDULE_S[1:], 1):
        for _ in range(50):
            delay = delay_before_next(tries, draw)
            assert delay is not None
            assert 0.8 * nominal <= delay <= 1.2 * nominal
    assert delay_before_next(len(SCHEDULE_S)) is None
