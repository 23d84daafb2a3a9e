"""Lets browsers call from any page: credentials travel in a header that pages must know, never in cookies."""

from __future__ import annotations

import re

from .asgi import Headers, Scope

_NAMES = re.compile(rb"[A-Za-z0-9!#$%&'*+.^_`|~, -]{1,4096}")

#: On every answer to a browser. The star alone does not cover older browsers, so that the names are listed too.
ALLOW: Headers = [
    (b"access-control-allow-origin", b"*"),
    (
        b"access-control-expose-headers",
        b"*, x-fal-request-id, x-fal-error-type, x-fal-request-timeout-type, x-fal-billable-units, x-fal-served-from, "
        b"x-fal-runner-hints, x-fal-needs-retry, x-fal-retryable, x-keepwarm-device, x-keepwarm-log, retry-after, "
        b"content-range, server-timing",
    ),
]


def preflight(scope: Scope) -> Headers | None:
    """Headers of the answer when this is a browser asking for permission, else None."""
    asked = {name: value for name, value in scope["headers"] if name.startswith(b"access-control-request-")}
    if b"access-control-request-method" not in asked:
        return None
    headers = [
        *ALLOW,
        (b"access-control-allow-methods", b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"),
        (b"access-control-max-age", b"86400"),
        (b"vary", b"access-control-request-headers"),
    ]
    # The names are echoed: a star does not permit Authorization.
    names = asked.get(b"access-control-request-headers", b"")
    if names and _NAMES.fullmatch(names):
        headers.append((b"access-control-allow-headers", names))
    return headers
