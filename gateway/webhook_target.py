"""Whether a webhook URL may be taken at all: form, length, and hosts that are written as private addresses.

Names are resolved and checked again when the webhook is delivered; a name can point elsewhere by then.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from urllib.parse import urlsplit

from .errors import Refusal, bad_request

MAX_URL_LENGTH = 2048
_UNPRINTABLE = re.compile(r"[\x00-\x20\x7f-\uffff]")

#: ``ipaddress.is_global`` calls several of these global, so the list is spelt out.
_REFUSED_V4 = tuple(
    ipaddress.IPv4Network(net)
    for net in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
        "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16", "192.175.48.0/24",
        "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/3",
    )
)  # fmt: skip
_ONLY_V6 = ipaddress.IPv6Network("2000::/3")
_REFUSED_V6 = tuple(ipaddress.IPv6Network(net) for net in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"))


def checked_webhook(url: str, allow_private: bool) -> str:
    """``url`` when it can be a webhook.

    Raises:
        Refusal: 400 naming what is wrong with it.
    """
    if len(url) > MAX_URL_LENGTH:
        raise _wrong(f"is {len(url)} characters long; at most {MAX_URL_LENGTH} are taken")
    if _UNPRINTABLE.search(url) or "\\" in url:
        raise _wrong("holds blanks, control or non-ASCII characters; percent-encode them")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise _wrong(f"cannot be read ({error})") from None
    if parts.scheme not in ("http", "https"):
        raise _wrong("must begin with http:// or https://")
    if not host or port == 0:
        raise _wrong("has no usable host or port")
    if parts.username is not None or parts.password is not None:
        raise _wrong("holds credentials; put a token into its path or query instead")
    if not allow_private and _is_private(host):
        raise _wrong(
            f"points at the private host {host}; on a trusted network the operator can allow that with "
            "KEEPWARM_ALLOW_PRIVATE_WEBHOOKS=1"
        )
    if not allow_private and port not in (None, 80, 443):
        # The sender would refuse it too, but only after the request has run, where nobody sees it.
        raise _wrong(f"names port {port}; webhooks go to 80 and 443 unless KEEPWARM_ALLOW_PRIVATE_WEBHOOKS=1 is set")
    return url


def _wrong(why: str) -> Refusal:
    return bad_request(f"The fal_webhook URL {why}.")


def _is_private(host: str) -> bool:
    name = host.rstrip(".").lower()
    if name == "localhost" or name.endswith((".localhost", ".local", ".internal")):
        return True
    address = _literal(name)
    return address is not None and not _is_public(address)


def _literal(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address that a host is written as, in any of the forms that resolvers take (``127.1``, ``0x7f000001``)."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        pass
    if "%" in host:  # an IPv6 address with a scope: only meaningful on a local link
        return ipaddress.IPv6Address("::1")
    try:
        return ipaddress.IPv4Address(socket.inet_aton(host))
    except OSError:
        return None


def _is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return _is_public(address.ipv4_mapped)
        return address.scope_id is None and address in _ONLY_V6 and not any(address in net for net in _REFUSED_V6)
    return not any(address in net for net in _REFUSED_V4)
