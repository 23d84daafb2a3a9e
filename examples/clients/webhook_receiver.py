"""Be called when a request has ended, and believe it only if the platform signed it.

    KEEPWARM_ALLOW_PRIVATE_WEBHOOKS=1 keepwarm up      # or it would refuse to call a receiver on this machine
    python examples/clients/webhook_receiver.py http://127.0.0.1:8787 --port 9000
    curl -X POST "http://127.0.0.1:8787/queue/demo/hello?fal_webhook=http://127.0.0.1:9000" \
        -H "Content-Type: application/json" -d '{"name": "Ada"}'

The platform tries again until it gets a 2xx, so the same result may come twice: `request_id` tells.
Needs httpx and cryptography.
"""

import argparse
import base64
import hashlib
import http.server
import json
import sys
import time
from collections.abc import Mapping
from typing import Any

import httpx
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

MAX_AGE = 300  # seconds that the platform's clock and ours may be apart; older messages may be replays


def fetch_keys(platform: str) -> list[Ed25519PublicKey]:
    """The platform's public keys. They rarely change: a receiver may keep them for a day."""
    found = httpx.get(f"{platform}/rest/.well-known/jwks.json", timeout=10).raise_for_status().json()
    return [Ed25519PublicKey.from_public_bytes(base64.urlsafe_b64decode(key["x"])) for key in found["keys"]]


def is_genuine(headers: Mapping[str, str], body: bytes, keys: list[Ed25519PublicKey], now: float) -> bool:
    """Whether one of `keys` signed exactly this body, lately.

    Args:
        headers: of the call, looked up by lower-case name.
        now: unix time in seconds.
    """
    try:
        request_id, user_id, timestamp, signature = (
            headers[f"x-fal-webhook-{name}"] for name in ("request-id", "user-id", "timestamp", "signature")
        )
        if abs(now - int(timestamp)) > MAX_AGE:
            return False
        signed = "\n".join([request_id, user_id, timestamp, hashlib.sha256(body).hexdigest()]).encode()
        raw_signature = bytes.fromhex(signature)
    except (KeyError, ValueError):
        return False
    for key in keys:
        try:
            key.verify(raw_signature, signed)
            return True
        except InvalidSignature:
            continue
    return False


class Receiver(http.server.BaseHTTPRequestHandler):
    keys: list[Ed25519PublicKey]
    seen: set[str]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        if not is_genuine(headers, body, self.keys, time.time()):
            print("refused: not signed by this platform", file=sys.stderr, flush=True)
            self.send_error(401)
            return
        result: dict[str, Any] = json.loads(body)
        if result["request_id"] not in self.seen:
            self.seen.add(result["request_id"])
            print(json.dumps(result), flush=True)
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet: the results are the output."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("platform", help="e.g. http://127.0.0.1:8787")
    parser.add_argument("--port", type=int, default=9000, help="0 picks a free one")
    options = parser.parse_args()
    Receiver.keys = fetch_keys(options.platform.rstrip("/"))
    Receiver.seen = set()
    with http.server.ThreadingHTTPServer(("127.0.0.1", options.port), Receiver) as server:
        print(f"listening on http://127.0.0.1:{server.server_address[1]}", file=sys.stderr, flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            pass


if __name__ == "__main__":
    main()
