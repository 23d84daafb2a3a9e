"""One try to deliver a webhook: the payload, its signature and the call; and when the next try is due.

Owns what goes over the wire and what counts as delivered. Leaves the outbox to the store, where a URL may point to
``webhook_targets`` and running the tries to the jobs service.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import ssl
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

import httpx
import orjson
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from scheduler.control.webhook_targets import Resolve, Target, TargetRefused, check_target
from scheduler.store.records import RequestRecord, RequestState

#: Seconds to wait before each try; after the last one the delivery is a dead letter.
SCHEDULE_S = (0, 5, 60, 300, 900, 1800, 3600, 7200, 14400, 28800)
JITTER = 0.2
#: The longest Retry-After that is honoured, in seconds: the result must still be there for the last try.
LONGEST_WISH_S = 3600.0
#: Seconds for one try as a whole, and for each address to accept a connection.
TOTAL_TIMEOUT_S = 15.0
CONNECT_TIMEOUT_S = 5.0
#: Most bytes of an answer that are read.
MAX_ANSWER_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Try:
    """How one try ended. ``final``: no later try can end better. ``retry_after``: seconds the receiver asks for."""

    delivered: bool
    detail: str
    final: bool = False
    retry_after: float | None = None


def delay_before_next(tries: int, draw: random.Random | None = None, asked_for: float | None = None) -> float | None:
    """Seconds until the next try after ``tries`` have failed; None after the last.

    Within 20 % of the schedule, or as much later as the receiver has asked for, up to LONGEST_WISH_S: never sooner than
    it said, and spread all the same, because it says the same to everybody.
    """
    if tries >= len(SCHEDULE_S):
        return None
    spread: float = (draw or random).uniform(1 - JITTER, 1 + JITTER)
    wish = min(asked_for or 0.0, LONGEST_WISH_S) * (1 + abs(spread - 1))
    return max(SCHEDULE_S[tries] * spread, wish)


def payload(record: RequestRecord) -> bytes:
    """The body that receivers get, as JSON.

    Raises:
        ValueError: the request has no outcome (any more).
    """
    outcome = record.outcome
    if outcome is None:
        raise ValueError(f"the result of request {record.request_id} is gone")
    failed = record.state is not RequestState.COMPLETED
    document: dict[str, object] = {
        "request_id": record.request_id,
        "gateway_request_id": record.request_id,
        "status": "ERROR" if failed else "OK",
        "payload": None,
        "error": f"Invalid status code: {outcome.status}" if failed else None,
    }
    try:
        orjson.loads(outcome.body)
    except orjson.JSONDecodeError as error:
        document["payload_error"] = f"the result is not JSON: {error}"
    else:
        # The app's own bytes: decoding and encoding again would change numbers beyond 64 bits.
        document["payload"] = orjson.Fragment(outcome.body)
    return orjson.dumps(document)


def signed_headers(
    key: Ed25519PrivateKey, request_id: str, user_id: str, body: bytes, unix_seconds: int
) -> dict[str, str]:
    """The four headers by which a receiver knows that ``body`` is from here and recent."""
    digest = hashlib.sha256(body).hexdigest()
    message = "\n".join((request_id, user_id, str(unix_seconds), digest)).encode("utf-8")
    return {
        "X-Fal-Webhook-Request-Id": request_id,
        "X-Fal-Webhook-User-Id": user_id,
        "X-Fal-Webhook-Timestamp": str(unix_seconds),
        "X-Fal-Webhook-Signature": key.sign(message).hex(),
    }


class WebhookSender:
    """Makes tries over one HTTP client.

    Args:
        key: signs every try.
        allow_private: the operator permits loopback, private addresses and any port.
        resolve: name resolution, the system's when None.
        tls: trust for https, the usual roots when None.
        total_timeout: seconds for one try as a whole.
    """

    def __init__(
        self,
        key: Ed25519PrivateKey,
        *,
        allow_private: bool = False,
        resolve: Resolve | None = None,
        tls: ssl.SSLContext | None = None,
        total_timeout: float = TOTAL_TIMEOUT_S,
    ) -> None:
        self._key = key
        self._allow_private = allow_private
        self._resolve = resolve
        self._total_timeout = total_timeout
        self._client = httpx.AsyncClient(
            verify=tls if tls is not None else httpx.create_ssl_context(),
            follow_redirects=False,
            # A proxy from the environment would resolve the name again, past the check.
            trust_env=False,
            timeout=httpx.Timeout(total_timeout, connect=CONNECT_TIMEOUT_S),
            # Connections are pooled by address, and one address may serve names of different owners.
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
            headers={"User-Agent": "keepwarm-webhooks/1", "Accept-Encoding": "identity"},
        )

    async def close(self) -> None:
        """Close the HTTP client."""
        await self._client.aclose()

    async def deliver(self, url: str, record: RequestRecord, unix_seconds: int) -> Try:
        """Make one try.

        Args:
            url: where the caller wants the result.
            record: a finished request with its outcome.
            unix_seconds: the time that goes into the signature; receivers refuse one more than five minutes off.
        """
        try:
            body = payload(record)
        except ValueError as error:
            return Try(False, str(error), final=True)
        owner = record.app.split("/", 1)[0]
        headers = signed_headers(self._key, record.request_id, owner, body, unix_seconds)
        try:
            async with asyncio.timeout(self._total_timeout):
                target = await check_target(url, allow_private=self._allow_private, resolve=self._resolve)
                return await self._call(target, headers, body)
        except TargetRefused as error:
            return Try(False, str(error), final=True)
        except TimeoutError:
            return Try(False, f"no answer within {self._total_timeout:g} s")
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            return Try(False, f"{type(error).__name__}: {error}".rstrip(": "))

    async def _call(self, target: Target, headers: dict[str, str], body: bytes) -> Try:
        for address in target.addresses[:-1]:
            try:
                return await self._call_address(target, address, headers, body)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                continue
        return await self._call_address(target, target.addresses[-1], headers, body)

    async def _call_address(self, target: Target, address: str, headers: dict[str, str], body: bytes) -> Try:
        literal = f"[{address}]" if ":" in address else address
        request = self._client.build_request(
            "POST",
            f"{target.scheme}://{literal}:{target.port}{target.path}",
            content=body,
            headers={**headers, "Content-Type": "application/json", "Host": target.host_header},
            extensions={"sni_hostname": target.host},
        )
        response = await self._client.send(request, stream=True)
        try:
            if 200 <= response.status_code < 300:
                return Try(True, f"status {response.status_code}")
            said = f"status {response.status_code}: {await _beginning(response)}".rstrip(": ")
            if 300 <= response.status_code < 400:
                return Try(False, f"{said} (redirects are not followed; give the address itself)", final=True)
            if response.status_code == 410:  # the receiver wants no more of it
                return Try(False, said, final=True)
            wish = _wish(response.headers.get("retry-after")) if response.status_code in (429, 503) else None
            return Try(False, said, retry_after=wish)
        finally:
            await response.aclose()


async def _beginning(response: httpx.Response) -> str:
    """The first line of an error answer, for the operator; never more than the limit is read."""
    read = bytearray()
    async for chunk in response.aiter_raw():
        read += chunk
        if len(read) >= MAX_ANSWER_BYTES:
            break
    lines = read[:MAX_ANSWER_BYTES].decode("utf-8", "replace").strip().splitlines()
    return lines[0][:200] if lines else ""


def _wish(retry_after: str | None) -> float | None:
    """Seconds of a Retry-After header, given as a number or as a date; None when there is none that makes sense."""
    if retry_after is None:
        return None
    if retry_after.isascii() and retry_after.isdigit():
        return float(retry_after[:9])
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None
