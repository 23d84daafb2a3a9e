"""Which network addresses a URL from outside may lead to: the public internet and nothing else.

Pure, and the one list of them: downloads in apps, webhooks taken and webhooks delivered all ask here. The standard
library's ``is_global`` is not used: it calls several roads to private addresses global (``64:ff9b::7f00:1``,
``2002:7f00:1::``, ``::127.0.0.1``, ``fec0::1``, multicast). Standard library only.
"""

from __future__ import annotations

import ipaddress

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

_V4_REFUSED = tuple(
    ipaddress.IPv4Network(network)
    for network in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
        "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16", "192.175.48.0/24",
        "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/3",
    )
)  # fmt: skip
_V6_ALLOWED = ipaddress.IPv6Network("2000::/3")
_V6_REFUSED = tuple(
    ipaddress.IPv6Network(network) for network in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")
)


def refused_network(address: IpAddress) -> str | None:
    """The network that makes ``address`` off limits, or None when it may be connected to on behalf of a caller."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            return "a scoped address"  # link-local by nature
        if address.ipv4_mapped is not None:
            return refused_network(address.ipv4_mapped)
        if address not in _V6_ALLOWED:
            return f"outside {_V6_ALLOWED}"
        return next((str(network) for network in _V6_REFUSED if address in network), None)
    return next((str(network) for network in _V4_REFUSED if address in network), None)


def is_public(address: str) -> bool:
    """Whether ``address``, an IP address as text, may be connected to on behalf of a caller."""
    try:
        return refused_network(ipaddress.ip_address(address)) is None
    except ValueError:
        return False
