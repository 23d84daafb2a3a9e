"""Certificates of a data folder's own making: what they cover, who may sign, when they are renewed."""

from __future__ import annotations

import socket
import ssl
import stat
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import certifi
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from keepwarm import tls
from keepwarm.state import write_private

NAMES = tls.wanted_names("127.0.0.1", None)


def handshake(files: tls.TlsFiles, name: str) -> dict[str, object]:
    """A client that trusts ``roots`` alone connects to a server with the certificate, and asks for ``name``."""
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(files.certificate)
    trusting = ssl.create_default_context(cafile=str(files.roots))
    trusting.verify_flags |= ssl.VERIFY_X509_STRICT
    near, far = socket.socketpair()

    def serve() -> None:
        try:
            with serving.wrap_socket(far, server_side=True) as connection:
                connection.recv(1)
        except OSError:
            far.close()  # the client refused the certificate

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with trusting.wrap_socket(near, server_hostname=name) as connection:
            return dict(connection.getpeercert() or {})
    finally:
        near.close()
        thread.join(10)


@pytest.mark.parametrize(
    "name",
    [
        *("localhost", "127.0.0.1", "::1", socket.gethostname()),
        *("fal.run", "queue.fal.run", "ws.fal.run", "rest.fal.ai", "rest.alpha.fal.ai", "v3.fal.media"),
    ],
)
def test_every_name_of_the_gateway_is_covered(tmp_path: Path, name: str) -> None:
    assert handshake(tls.ensure(tmp_path, NAMES), name)


def test_names_that_were_not_asked_for_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(tls.ensure(tmp_path, NAMES), "example.com")


def test_whoever_trusts_the_authority_trusts_it_for_our_names_only(tmp_path: Path) -> None:
    """A stolen ca.key must not be able to pose as the caller's bank."""
    files = tls.ensure(tmp_path, NAMES)
    now = datetime.now(UTC)
    authority, key = tls._authority(files, NAMES, now)
    own_key = ec.generate_private_key(ec.SECP256R1())
    forged = tls._issue(own_key.public_key(), authority, key, ("bank.example",), now)
    write_private(files.certificate, tls._key_pem(own_key) + tls._certificate_pem(forged))
    with pytest.raises(ssl.SSLCertVerificationError, match="permitted subtree"):
        handshake(files, "bank.example")


def test_keys_are_private_and_certificates_are_not(tmp_path: Path) -> None:
    files = tls.ensure(tmp_path, NAMES)
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in files.folder.iterdir()} == {
        "ca.key": 0o600,
        "gateway.pem": 0o600,
        "ca.crt": 0o644,
        "roots.pem": 0o644,
    }


def test_nothing_changes_while_everything_is_good(tmp_path: Path) -> None:
    files = tls.ensure(tmp_path, NAMES)
    before = files.certificate.read_text(), files.authority.read_text()
    tls.ensure(tmp_path, NAMES, datetime.now(UTC) + tls.CERTIFICATE_LIFE - tls.RENEW_BEFORE - timedelta(days=1))
    assert (files.certificate.read_text(), files.authority.read_text()) == before


def test_a_certificate_is_renewed_before_it_expires_and_its_authority_stays(tmp_path: Path) -> None:
    files = tls.ensure(tmp_path, NAMES)
    before = files.certificate.read_text(), files.authority.read_text()
    tls.ensure(tmp_path, NAMES, datetime.now(UTC) + tls.CERTIFICATE_LIFE - tls.RENEW_BEFORE)
    assert files.certificate.read_text() != before[0]
    assert files.authority.read_text() == before[1]


@pytest.mark.parametrize("name", ["ca.key", "ca.crt", "gateway.pem"])
def test_a_damaged_file_is_made_anew(tmp_path: Path, name: str) -> None:
    files = tls.ensure(tmp_path, NAMES)
    (files.folder / name).write_text("nonsense")
    assert handshake(tls.ensure(tmp_path, NAMES), "localhost")


def test_a_new_name_is_covered_from_the_next_start(tmp_path: Path) -> None:
    tls.ensure(tmp_path, NAMES)
    named = tls.wanted_names("0.0.0.0", "https://gpu.example:8443/base")
    assert "0.0.0.0" not in named
    assert handshake(tls.ensure(tmp_path, named), "gpu.example")


def test_the_roots_hold_what_the_machine_trusted_before(tmp_path: Path) -> None:
    own = tmp_path / "own.pem"
    own.write_text(certifi.contents()[:5000] + "# company root\n")
    files = tls.ensure(tmp_path, NAMES, environ={"SSL_CERT_FILE": str(own)})
    assert "# company root" in files.roots.read_text()
    tls.ensure(tmp_path, NAMES, environ={"SSL_CERT_FILE": str(files.roots)})
    text = files.roots.read_text()
    assert text.count(files.authority.read_text()) == 1
