"""Where a webhook may go: resolve once, check every address, and hand out the addresses that were checked."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from urllib.parse import SplitResult, quote, urlsplit

from fal._addresses import refused_network

from scheduler.store.machine import own_addresses

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]

_PORTS = {"http": 80, "https": 443}


class TargetRefused(Exception):
    """The webhook's URL is not one that this platform calls."""


@dataclass(frozen=True, slots=True)
class Target:
    """A checked destination: connect to one of ``addresses``, speak to ``host``.

    Args:
        scheme: ``http`` or ``https``.
        host: name or address from the URL, for the Host header and TLS.
        port: port number.
        path: path and query as they go on the wire.
        addresses: the checked addresses, in the resolver's order.
    """

    scheme: str
    host: str
    port: int
    path: str
    addresses: tuple[str, ...]

    @property
    def host_header(self) -> str:
        name = f"[{self.host}]" if ":" in self.host else self.host
        return name if self.port == _PORTS[self.scheme] else f"{name}:{self.port}"


async def check_target(url: str, *, allow_private: bool, resolve: Resolve | None = None) -> Target:
    """Resolve and check a webhook's URL.

    Args:
        url: the caller's URL.
        allow_private: the operator permits loopback, private addresses and any port.
        resolve: name and port to addresses; the system's resolver when None.

    Raises:
        TargetRefused: not http(s), a password in it, a port or an address that is off limits.
        OSError: the name does not resolve now.
    """
    parts, host, port = _parse(url)
    if not allow_private and port not in _PORTS.values():
        raise TargetRefused(f"webhooks go to ports 80 and 443 only, not {port}{_ALLOWING}")
    found = await (resolve or _system_resolve)(host, port)
    addresses = tuple(dict.fromkeys(found))
    if not addresses:
        raise OSError(f"{host} has no address")
    if not allow_private:
        own = own_addresses()
        for text in addresses:
            address = ipaddress.ip_address(text)
            network = refused_network(address) or ("an address of this machine" if address in own else None)
            if network is not None:
                raise TargetRefused(f"{host} is {text}, which webhooks must not reach ({network}){_ALLOWING}")
    path = quote(parts.path or "/", safe=_AS_IT_IS) + (f"?{quote(parts.query, safe=_AS_IT_IS)}" if parts.query else "")
    return Target(parts.scheme, host, port, path, addresses)


#: Characters of a path or query that are left alone; a caller's own percent escapes among them.
_AS_IT_IS = "%/?:@!$&'()*+,;=~[]"
_ALLOWING = "; KEEPWARM_ALLOW_PRIVATE_WEBHOOKS=1 permits it"


def _parse(url: str) -> tuple[SplitResult, str, int]:
    try:
        parts = urlsplit(url)
        port = parts.port
        host = parts.hostname or ""
        host = host if host.isascii() else host.encode("idna").decode("ascii")
    except ValueError as error:
        raise TargetRefused(f"the webhook URL cannot be read: {error}") from error
    if parts.scheme not in _PORTS or not host:
        raise TargetRefused("a webhook URL begins with http:// or https:// and names a host")
    if parts.username is not None or parts.password is not None:
        raise TargetRefused("a webhook URL holds no user name or password")
    if any(ord(char) <= 0x20 or ord(char) == 0x7F for char in url):
        raise TargetRefused("a webhook URL holds no blanks or control characters")
    return parts, host, port if port is not None else _PORTS[parts.scheme]


async def _system_resolve(host: str, port: int) -> Sequence[str]:
    try:
        answers = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError as error:
        raise TargetRefused(f"{host!r} is not a host name") from error
    return [str(answer[4][0]) for answer in answers]
