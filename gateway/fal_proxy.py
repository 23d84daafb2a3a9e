"""``/fal/proxy``: the JavaScript client's proxy protocol, where the address that is meant stands in a header.

Pure: says what is asked for. Only fal's own hosts can be asked for, and they are this platform; no key is added.
"""

from __future__ import annotations

from urllib.parse import unquote, urlsplit

from .addresses import HOSTS
from .asgi import Scope
from .errors import Refusal, bad_request
from .incoming import Head

PATH = "/fal/proxy"
_HEADER = b"x-fal-target-url"


def meant(scope: Scope, head: Head) -> tuple[Scope, bytes]:
    """The request as it would have come without the proxy, and the host that it was meant for.

    Raises:
        Refusal: 400 without a usable ``X-Fal-Target-Url``, 403 for a host that is not fal's.
    """
    given = head.options.get(_HEADER, b"") if head.options else b""
    try:
        target = given.decode("ascii")
        parts = urlsplit(target)
        port = parts.port
    except ValueError:
        raise bad_request("X-Fal-Target-Url is not a URL.") from None
    if parts.scheme != "https" or not parts.hostname or parts.username is not None:
        raise bad_request(
            "X-Fal-Target-Url must name what is asked for, e.g. https://fal.run/owner/app; the JavaScript client sends "
            "it when its proxyUrl is set."
        )
    host = parts.hostname.encode("ascii")
    if host not in HOSTS or port not in (None, 443):
        known = ", ".join(sorted(name.decode("ascii") for name in HOSTS))
        raise Refusal(403, f"{parts.netloc[:100]!r} is not reached through this proxy; it leads to {known}.")
    path = parts.path or "/"
    inner = {**scope, "path": unquote(path), "raw_path": path.encode(), "query_string": parts.query.encode()}
    return inner, host
