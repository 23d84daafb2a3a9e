"""What this machine is on its networks, for those who must not be led back to it."""

from __future__ import annotations

import ipaddress
import socket

import psutil
from fal._addresses import IpAddress


def own_addresses() -> set[IpAddress]:
    """Every address of this machine, public ones too: what listens here trusts its neighbours."""
    return {
        ipaddress.ip_address(one.address.partition("%")[0])
        for each in psutil.net_if_addrs().values()
        for one in each
        if one.family in (socket.AF_INET, socket.AF_INET6)
    }
