"""Whether a webhook URL may be taken at all: form, length, and hosts that are written as private addresses.

Names are resolved and checked again when the webhook is delivered; a name can point elsewhere by then.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from urllib.parse import urlsplit

from fal._addresses import IpAddress, refused_network

from .errors import Refusal, bad_request

MAX_URL_LENGTH = 2048
_UNPRINTABLE = re.compile(r"[\x00-\x20\x7f-\uffff]")


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
    return address is not None and refused_network(address) is not None


def _literal(host: str) -> IpAddress | None:
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
