"""Fetches http(s) URLs that callers chose, without letting them reach into the platform's network.

Each host is resolved once, every address is checked, and the connection goes to a checked address; redirects are
checked again. The platform's own storage hosts are allowed although they are usually private.
"""

from __future__ import annotations

import http.client
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from fal._addresses import is_public
from fal._context import runner
from fal.toolkit.exceptions import DownloadError

_MAX_REDIRECTS = 8
_PIECE = 1024 * 1024
_SAFE = "/%:=&?~#+!$,;'@()*[]-._"


class _Pinned(http.client.HTTPConnection):
    """Connects to an address that was checked, whatever the name resolves to by now."""

    def __init__(self, host: str, port: int, address: str, timeout: float) -> None:
        super().__init__(host, port, timeout=timeout)
        self._address = address

    def connect(self) -> None:
        self.sock = socket.create_connection((self._address, self.port), self.timeout)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class PinnedTLS(_Pinned):
    """The same over TLS, for the name that was asked for."""

    def connect(self) -> None:
        super().connect()
        # Known before the handshake, so that one that takes too long can be cut off.
        secure = ssl.create_default_context().wrap_socket(
            self.sock, server_hostname=self.host, do_handshake_on_connect=False
        )
        self.sock = secure
        secure.do_handshake()


@contextmanager
def open_url(
    url: str,
    headers: Mapping[str, str] | None = None,
    timeout: float = 30.0,
    address_of: Callable[[str, int], str] | None = None,
) -> Iterator[http.client.HTTPResponse]:
    """GET ``url``, following redirects; yields the answer with a 2xx status.

    Args:
        timeout: seconds that connecting, or one read, may take.
        address_of: finds the address to connect to for a host and port, and refuses it; ``checked_address`` if None.

    Raises:
        DownloadError: not http(s), an address that is not public, a network failure or an error status.
    """
    sent = {"User-Agent": "fal-toolkit", "Accept": "*/*", "Accept-Encoding": "identity", **(headers or {})}
    origin = _parse(url)
    for _ in range(_MAX_REDIRECTS):
        parts = _parse(url)
        if (parts.scheme, parts.netloc) != (origin.scheme, origin.netloc):
            sent = {key: value for key, value in sent.items() if key.lower() not in ("authorization", "cookie")}
        connection, answer = _get(parts, sent, timeout, address_of or checked_address)
        try:
            if answer.status in (301, 302, 303, 307, 308) and (location := answer.getheader("Location")):
                url = urljoin(url, location)
                continue
            if not 200 <= answer.status < 300:
                raise DownloadError(f"{_shown(url)} answered {answer.status} {answer.reason}")
            try:
                yield answer
            except (OSError, http.client.HTTPException) as error:
                raise DownloadError(f"the connection to {parts.hostname} broke off: {error}") from error
            return
        finally:
            answer.close()  # a connection that ends with its answer belongs to the answer
            connection.close()
    raise DownloadError(f"{_shown(url)}: more than {_MAX_REDIRECTS} redirects")


def fetch(url: str, *, limit: int | None = None, headers: Mapping[str, str] | None = None) -> tuple[bytes, str | None]:
    """The whole body and its content type.

    Args:
        limit: bytes; a larger body is refused.

    Raises:
        DownloadError: as ``open_url``, or the body is over ``limit``.
    """
    with open_url(url, headers) as answer:
        length = answer.length
        if limit is not None and length is not None and length > limit:
            raise DownloadError(f"{_shown(url)} has {length} bytes; the limit is {limit}")
        pieces: list[bytes] = []
        size = 0
        while piece := answer.read(_PIECE):
            size += len(piece)
            if limit is not None and size > limit:
                raise DownloadError(f"{_shown(url)} is over the limit of {limit} bytes")
            pieces.append(piece)
        if length is not None and size < length:
            raise DownloadError(f"{_shown(url)} broke off after {size} of {length} bytes")
        return b"".join(pieces), answer.getheader("Content-Type")


def _get(
    parts: SplitResult, headers: Mapping[str, str], timeout: float, address_of: Callable[[str, int], str]
) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
    host = parts.hostname or ""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    kind = PinnedTLS if parts.scheme == "https" else _Pinned
    connection = kind(host, port, address_of(host, port), timeout)
    target = quote(parts.path or "/", safe=_SAFE) + (f"?{quote(parts.query, safe=_SAFE)}" if parts.query else "")
    try:
        connection.request("GET", target, headers=dict(headers))
        return connection, connection.getresponse()
    except (OSError, http.client.HTTPException) as error:
        connection.close()
        raise DownloadError(f"cannot fetch {_shown(parts.geturl())}: {error}") from error


def checked_address(host: str, port: int, of_platform: bool = True) -> str:
    """An address of ``host`` that may be connected to.

    Args:
        of_platform: whether the platform's own hosts may be reached although they are private.

    Raises:
        DownloadError: it does not resolve, or any of its addresses is not public.
    """
    try:
        found = [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    except (OSError, UnicodeError) as error:
        raise DownloadError(f"cannot resolve {host!r}: {error}") from error
    around = runner()
    hosts = around.storage_hosts if around is not None else frozenset()
    name = host.lower()
    if of_platform and (f"{name}:{port}" in hosts or (name in hosts and port in (80, 443))):
        return found[0]
    # One private answer among public ones is how a name is made to pass a check of the first answer only.
    for address in found:
        if not is_public(address):
            raise DownloadError(f"{host!r} leads to {address}, which is not a public address")
    return found[0]


def _parse(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise DownloadError(f"{_shown(url)} is not a URL: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise DownloadError(f"{_shown(url)} is not an http(s) URL")
    return parts


def _shown(url: str) -> str:
    """The URL without its query, which may hold a signature."""
    return repr(url.partition("?")[0][:200])
