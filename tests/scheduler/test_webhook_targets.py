"""Where webhooks may go: every address of a name is checked, in whatever form it is written."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Sequence

import pytest
from fal._addresses import refused_network

from scheduler.control import webhook_targets
from scheduler.control.webhook_targets import Target, TargetRefused, check_target
from scheduler.store.machine import own_addresses
from tests.support.loop import run

PRIVATE = [
    "127.0.0.1", "127.255.255.254", "0.0.0.0", "10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1",
    "169.254.169.254", "100.64.0.1", "192.0.0.8", "192.0.2.1", "192.31.196.1", "192.52.193.1", "192.88.99.1",
    "192.175.48.1", "198.18.0.1", "198.19.255.255", "198.51.100.7", "203.0.113.9", "224.0.0.1", "239.255.255.255",
    "240.0.0.1", "255.255.255.255",
    "::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::7f00:1",
    "2002:7f00:1::", "2001::1", "2001:db8::1", "3fff::1", "5f00::1", "fc00::1", "fd12:3456::1", "fe80::1", "fec0::1",
    "ff02::1", "fe80::1%1",
]  # fmt: skip
PUBLIC = ["1.1.1.1", "8.8.8.8", "172.15.255.255", "172.32.0.1", "100.63.255.255", "2606:4700::1111", "::ffff:8.8.8.8"]


@pytest.mark.parametrize("address", PRIVATE)
def test_private_and_odd_addresses_are_off_limits(address: str) -> None:
    assert refused_network(ipaddress.ip_address(address)) is not None


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_may_be_called(address: str) -> None:
    assert refused_network(ipaddress.ip_address(address)) is None


#: reliability.md 4.4, as written there: IPv4 that is refused, and what IPv6 leaves of 2000::/3.
DENIED = [
    "0/8", "10/8", "100.64/10", "127/8", "169.254/16", "172.16/12", "192.0.0/24", "192.0.2/24", "192.31.196/24",
    "192.52.193/24", "192.88.99/24", "192.168/16", "192.175.48/24", "198.18/15", "198.51.100/24", "203.0.113/24",
    "224/3", "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20", "::/3", "4000::/2", "8000::/1",
]  # fmt: skip


def network(written: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    if ":" in written:
        return ipaddress.IPv6Network(written)
    numbers, _, bits = written.partition("/")
    octets = [*numbers.split("."), "0", "0", "0"][:4]
    return ipaddress.IPv4Network(f"{'.'.join(octets)}/{bits}")


@pytest.mark.parametrize("written", DENIED)
def test_every_network_of_the_rule_is_off_limits_from_end_to_end(written: str) -> None:
    found = network(written)
    for address in (found[0], found[1], found[found.num_addresses // 2], found[-1]):
        with pytest.raises(TargetRefused, match="must not reach"):
            check("https://example.com/", str(address))
        if found.version == 4:
            with pytest.raises(TargetRefused, match="must not reach"):
                check("https://example.com/", f"::ffff:{address}")


def test_the_machines_own_addresses_are_off_limits_though_public(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine with a public address a webhook reached what listens there for its neighbours only."""
    assert ipaddress.ip_address("127.0.0.1") in own_addresses()
    monkeypatch.setattr(webhook_targets, "own_addresses", lambda: {ipaddress.ip_address("8.8.8.8")})
    with pytest.raises(TargetRefused, match="an address of this machine"):
        check("https://example.com/", "8.8.8.8")
    assert check("https://example.com/", "8.8.8.8", allow_private=True).addresses == ("8.8.8.8",)


def answering(*addresses: str):  # type: ignore[no-untyped-def]
    async def resolve(host: str, port: int) -> Sequence[str]:
        return addresses

    return resolve


def check(url: str, *addresses: str, allow_private: bool = False) -> Target:
    return run(check_target(url, allow_private=allow_private, resolve=answering(*addresses)))


def test_one_private_address_among_public_ones_is_enough_to_refuse() -> None:
    """A name with two addresses, one of them the metadata service's: checking only the first let the second through."""
    with pytest.raises(TargetRefused, match=r"169\.254\.169\.254"):
        check("https://example.com/hook", "1.1.1.1", "169.254.169.254")


@pytest.mark.parametrize(
    "written",
    [
        "2130706433",
        "0x7f.1",
        "0x7f000001",
        "127.1",
        "0177.0.0.1",
        "[::1]",
        "[::ffff:7f00:1]",
        "127.0.0.1.",
        "localhost",
    ],
)
def test_other_spellings_of_loopback_resolve_to_it_and_are_refused(written: str) -> None:
    with pytest.raises((TargetRefused, OSError)):
        run(check_target(f"http://{written}/", allow_private=False))


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.com/", "file:///etc/passwd", "example.com/hook", "https://", "https://user:secret@example.com/",
        "https://example.com:99999/", "https://exa mple.com/", "https://example.com/\r\nX-Evil: 1", "https://[::1/",
        "gopher://example.com/", f"https://{'ä' * 80}.com/",
    ],
)  # fmt: skip
def test_malformed_urls_are_refused_with_a_reason(url: str) -> None:
    with pytest.raises(TargetRefused):
        check(url, "1.1.1.1")


def test_only_the_usual_ports_unless_the_operator_says_otherwise() -> None:
    with pytest.raises(TargetRefused, match="KEEPWARM_ALLOW_PRIVATE_WEBHOOKS=1"):
        check("http://example.com:6379/", "1.1.1.1")
    allowed = check("http://example.com:9000/x", "127.0.0.1", allow_private=True)
    assert (allowed.port, allowed.addresses, allowed.host_header) == (9000, ("127.0.0.1",), "example.com:9000")


def test_what_goes_on_the_wire() -> None:
    target = check("https://Example.com/a b?q=ü&x=%20".replace(" ", "%20"), "1.1.1.1", "1.1.1.1", "8.8.8.8")
    assert target == Target("https", "example.com", 443, "/a%20b?q=%C3%BC&x=%20", ("1.1.1.1", "8.8.8.8"))
    assert check("http://bücher.example", "1.1.1.1").host_header == "xn--bcher-kva.example"
    assert check("http://[2606:4700::1111]:80/", "2606:4700::1111").host_header == "[2606:4700::1111]"


def test_a_name_without_an_address_may_have_one_later() -> None:
    with pytest.raises(OSError):
        check("https://example.com/")


def test_resolving_does_not_block_the_loop() -> None:
    async def scenario() -> None:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        ticking = asyncio.create_task(tick())
        with pytest.raises(TargetRefused):
            await check_target("http://127.0.0.1/", allow_private=False)
        ticking.cancel()
        assert ticks > 0

    run(scenario())
