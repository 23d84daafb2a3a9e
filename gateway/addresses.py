"""Where a request goes by its path or Host header, and which URLs callers are told.

Pure; leaves all serving to the modules that it names.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import Literal

from .asgi import Scope
from .errors import bad_request
from .incoming import Head
from .settings import Settings
from .shapes import Urls

Service = Literal["run", "queue", "rest", "cdn", "ws", "api", "health", "other"]

#: First path segments with a meaning of their own. No owner may have one of these names.
RESERVED: dict[str, Service] = {
    "run": "run",
    "queue": "queue",
    "rest": "rest",
    "cdn": "cdn",
    "ws": "ws",
    "api": "api",
    "health": "health",
    **dict.fromkeys(
        ("fal", "dashboard", "metrics", "workflows", "comfy", "docs", "favicon.ico", "robots.txt"), "other"
    ),
}
#: The hosts of the official clients select a service without a prefix.
HOSTS: dict[bytes, Service] = {
    b"fal.run": "run",
    b"queue.fal.run": "queue",
    b"ws.fal.run": "ws",
    b"rest.fal.ai": "rest",
    b"rest.alpha.fal.ai": "rest",
    b"v3.fal.media": "cdn",
    b"v3b.fal.media": "cdn",
    # Where the Python client turns when the first two do not answer.
    b"falrun.com": "run",
    b"queue.falrun.com": "queue",
}
_PREFIXED = frozenset({"run", "queue", "rest", "cdn", "ws"})
_HOST = re.compile(rb"[A-Za-z0-9._-]{1,253}(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]{2,45}\](:[0-9]{1,5})?")


def locate(path: str, host: bytes) -> tuple[Service, str]:
    """The service that a path (or the Host) selects, and the path inside it, beginning with ``/``."""
    end = path.find("/", 1)
    first = path[1:] if end < 0 else path[1:end]
    service = RESERVED.get(first)
    if service is not None:
        rest = "/" if end < 0 else path[end:]
        return service, rest if service in _PREFIXED else path
    if host in HOSTS:
        return HOSTS[host], path
    return "run", path


def split_app(path: str) -> tuple[str, str] | None:
    """``/owner/app/some/route`` to ``("owner/app", "/some/route")``; trailing slashes are dropped, because a redirect
    would lose the callers who follow none. None when it cannot be an app's address."""
    slash = path.find("/", 1)
    if slash < 2:
        return None
    end = path.find("/", slash + 1)
    name = path[slash + 1 :] if end < 0 else path[slash + 1 : end]
    if not name:
        return None
    route = "/" if end < 0 else path[end:].rstrip("/") or "/"
    return path[1:slash] + "/" + name, route


class Addresses:
    """Base URLs as the caller sees this platform."""

    def __init__(self, settings: Settings) -> None:
        self._public = settings.public_url
        self._trusted = settings.trusted_proxies
        self._known: dict[tuple[str, bytes], str] = {}

    def base_url(self, scope: Scope, head: Head) -> str:
        """``https://gpu.example:8443``, without a final slash.

        Raises:
            Refusal: 400 for a Host header that is none.
        """
        if self._public is not None:
            return self._public
        scheme: str = scope["scheme"]
        host = head.host
        if self._trusted and self._is_trusted(scope):
            if head.forwarded_proto in (b"http", b"https"):
                scheme = head.forwarded_proto.decode("ascii")
            host = head.forwarded_host or host
        base = self._known.get((scheme, host))
        if base is None:
            base = self._checked(scope, scheme, host)
            if len(self._known) < 256:
                self._known[(scheme, host)] = base
        return base

    def files_url(self, scope: Scope, head: Head) -> str:
        """Base of the URLs of files, which apps must reach as well as callers.

        A caller whose client only knows fal's hosts was led here by a proxy or a hosts file, which apps may not have.
        When it comes over loopback, the address that it ended at is good for both.
        """
        base = self.base_url(scope, head)
        if head.host not in HOSTS or self._public is not None or head.forwarded_host is not None:
            return base
        address, port = scope["server"]
        if not _is_loopback(address):
            return f"{scope['scheme']}://v3.fal.media"
        return f"{scope['scheme']}://{f'[{address}]' if ':' in address else address}:{port}"

    def _checked(self, scope: Scope, scheme: str, host: bytes) -> str:
        if not host:  # HTTP/1.0
            address, port = scope["server"]
            host = f"{address}:{port}".encode() if port else b"localhost"
        if not _HOST.fullmatch(host):
            raise bad_request("The Host header is not a host name with an optional port.")
        return f"{scheme}://{host.decode('ascii')}"

    def _is_trusted(self, scope: Scope) -> bool:
        client = scope.get("client")
        try:
            peer = ipaddress.ip_address(client[0]) if client else None
        except ValueError:
            return False
        return peer is not None and any(peer in network for network in self._trusted)


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def takes_files(path: str, headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a body goes to the disk as it comes: a source file or an upload, by path or by Host."""
    if path.startswith("/api/v1/bundles/objects/"):
        return True
    host = next((value for name, value in headers if name == b"host"), b"")
    return locate(path, host)[0] == "cdn"


def queue_base(base_url: str, host: bytes) -> str:
    """Base of queue URLs: the queue host has them at its root, everything else below ``/queue``.

    ``base_url`` is another than the Host's when the operator set one.
    """
    at_root = HOSTS.get(host) == "queue" and base_url.endswith("//" + host.decode("ascii"))
    return base_url if at_root else f"{base_url}/queue"


def app_urls(base_url: str, app: str) -> Urls:
    """The two addresses of an app, as shown after a deploy."""
    return {"sync": f"{base_url}/{app}", "queue": f"{base_url}/queue/{app}"}
