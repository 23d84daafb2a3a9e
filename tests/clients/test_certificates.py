"""The certificate of a platform that runs for longer than a certificate lives."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

from keepwarm import tls
from tests.support.platform import PlatformUnderTest
from tests.support.waiting import wait_until


def served(platform: PlatformUnderTest) -> str:
    parts = urlsplit(platform.url)
    assert parts.hostname
    assert parts.port
    return ssl.get_server_certificate((parts.hostname, parts.port))


def test_a_renewed_certificate_is_served_without_a_restart(secure: PlatformUnderTest) -> None:
    names = tls.wanted_names("127.0.0.1", None)
    before = served(secure)
    tls.ensure(secure.data, names, datetime.now(UTC) + timedelta(days=61))
    wait_until(lambda: served(secure) != before, "the gateway to serve the renewed certificate")
    later = served(secure)
    tls.ensure(secure.data, names)  # what comes from the future is not valid yet
    wait_until(lambda: served(secure) != later, "the gateway to serve a certificate of today")
    with secure.client() as client:
        assert client.get("/health").status_code == 200


def test_fal_finds_the_platform_of_this_machine_and_trusts_it(secure: PlatformUnderTest) -> None:
    """Without KEEPWARM_URL or SSL_CERT_FILE: platform.json says which roots its own certificate needs."""
    shell = secure.shell()
    del shell["KEEPWARM_URL"], shell["FAL_KEY"]
    assert "tester/called" in secure.fal_in(shell, "apps", "list").stdout
