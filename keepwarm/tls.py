"""HTTPS without a public certificate: an authority of this data folder's own, the gateway's certificate, and the file
of roots that callers trust.

The authority is limited to the names it is made for, so that whoever installs it trusts it for nothing else. Leaves
serving to the gateway, which notices a renewed certificate by itself.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import certifi
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from gateway.addresses import HOSTS
from keepwarm.state import write_private

AUTHORITY_LIFE = timedelta(days=3650)
#: Some systems refuse certificates that live for longer than 397 days.
CERTIFICATE_LIFE = timedelta(days=90)
#: What is left of a life when it is renewed.
RENEW_BEFORE = timedelta(days=30)

_NAME = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63})*")
#: Whole domains of the official clients, for the authority; its certificates name single hosts.
_DOMAINS = ("localhost", "fal.run", "fal.ai", "fal.media", "falrun.com")
_ALWAYS = ("localhost", "127.0.0.1", "::1")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True)
class TlsFiles:
    """Where the certificates of a data folder are.

    ``authority``: to install where a client has a list of its own (NODE_EXTRA_CA_CERTS). ``roots``: the system's roots
    and the authority in one file (SSL_CERT_FILE). ``certificate``: the gateway's, with its key.
    """

    folder: Path

    @property
    def authority(self) -> Path:
        return self.folder / "ca.crt"

    @property
    def authority_key(self) -> Path:
        return self.folder / "ca.key"

    @property
    def certificate(self) -> Path:
        return self.folder / "gateway.pem"

    @property
    def roots(self) -> Path:
        return self.folder / "roots.pem"


def tls_files(data: Path) -> TlsFiles:
    """The files of a data folder, there or not."""
    return TlsFiles(data / "tls")


def wanted_names(host: str, public_url: str | None) -> tuple[str, ...]:
    """The names by which a gateway is reached: this machine's, those of fal's services, and what the operator said."""
    given = [host, urlsplit(public_url).hostname or "" if public_url else ""]
    names = [*_ALWAYS, socket.gethostname().lower(), *(name.decode("ascii") for name in HOSTS), *given]
    usable = [name for name in names if _address(name) or _NAME.fullmatch(name)]
    return tuple(dict.fromkeys(name for name in usable if name not in ("0.0.0.0", "::")))


def ensure(
    data: Path, names: Iterable[str], now: datetime | None = None, environ: Mapping[str, str] | None = None
) -> TlsFiles:
    """Make or renew what is missing, is about to expire or does not cover the names; safe to call at any time.

    Raises:
        OSError: the folder cannot be read or written.
    """
    wanted = tuple(names)
    now = now or datetime.now(UTC)
    files = tls_files(data)
    files.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    authority, key = _authority(files, wanted, now)
    if not _is_good(_read_certificate(files.certificate), authority, wanted, now):
        own_key = ec.generate_private_key(ec.SECP256R1())
        issued = _issue(own_key.public_key(), authority, key, wanted, now)
        write_private(files.certificate, _key_pem(own_key) + _certificate_pem(issued))
    _publish(files.roots, _system_roots(files, environ or os.environ) + _certificate_pem(authority))
    return files


def _authority(
    files: TlsFiles, names: tuple[str, ...], now: datetime
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    found = _read_certificate(files.authority)
    try:
        key = serialization.load_pem_private_key(files.authority_key.read_bytes(), None)
    except (OSError, ValueError):
        key = None
    if (
        found is not None
        and isinstance(key, ec.EllipticCurvePrivateKey)
        and found.public_key() == key.public_key()
        and found.not_valid_after_utc - now > RENEW_BEFORE
        and _permits(found, names)
    ):
        return found, key
    key = ec.generate_private_key(ec.SECP256R1())
    made = _make_authority(key, names, now)
    # The key first: without its certificate it is made anew, and a certificate without its key could sign nothing.
    write_private(files.authority_key, _key_pem(key))
    _publish(files.authority, _certificate_pem(made))
    return made, key


def _make_authority(key: ec.EllipticCurvePrivateKey, names: tuple[str, ...], now: datetime) -> x509.Certificate:
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Keepwarm"),
            x509.NameAttribute(NameOID.COMMON_NAME, f"Keepwarm on {socket.gethostname()[:40]}"),
        ]
    )
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    builder = _builder(name, name, key.public_key(), now, AUTHORITY_LIFE)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=True), critical=True)
    builder = builder.add_extension(x509.NameConstraints(_permitted(names), None), critical=True)
    builder = builder.add_extension(identifier, critical=False)
    builder = builder.add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False
    )
    return builder.sign(key, hashes.SHA256())


def _issue(
    key: ec.EllipticCurvePublicKey,
    authority: x509.Certificate,
    authority_key: ec.EllipticCurvePrivateKey,
    names: tuple[str, ...],
    now: datetime,
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Keepwarm gateway")])
    issuer = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    builder = _builder(subject, authority.subject, key, now, CERTIFICATE_LIFE)
    builder = builder.add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), False)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    builder = builder.add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer), critical=False
    )
    return builder.sign(authority_key, hashes.SHA256())


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, life: timedelta
) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder(subject_name=subject, issuer_name=issuer, public_key=key)
    builder = builder.serial_number(x509.random_serial_number())
    # Clocks of callers may be a little behind.
    return builder.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + life)


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _is_good(
    found: x509.Certificate | None, authority: x509.Certificate, names: tuple[str, ...], now: datetime
) -> bool:
    if found is None or found.not_valid_after_utc - now <= RENEW_BEFORE or found.not_valid_before_utc > now:
        return False
    try:
        found.verify_directly_issued_by(authority)
        named = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return False
    return all(_general_name(name) in named for name in names)


def _permits(authority: x509.Certificate, names: tuple[str, ...]) -> bool:
    try:
        found = authority.extensions.get_extension_for_class(x509.NameConstraints).value.permitted_subtrees or []
    except x509.ExtensionNotFound:
        return False
    return all(item in found for item in _permitted(names))


def _permitted(names: tuple[str, ...]) -> list[x509.GeneralName]:
    found: list[x509.GeneralName] = [x509.DNSName(name) for name in _DOMAINS]
    for name in names:
        address = _address(name)
        if address is not None:
            found.append(x509.IPAddress(ipaddress.ip_network(address)))
        elif not any(name == domain or name.endswith(f".{domain}") for domain in _DOMAINS):
            found.append(x509.DNSName(name))
    return found


def _general_name(name: str) -> x509.GeneralName:
    address = _address(name)
    return x509.DNSName(name) if address is None else x509.IPAddress(address)


def _address(name: str) -> Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def _system_roots(files: TlsFiles, environ: Mapping[str, str]) -> str:
    """What this machine trusts already: a caller who exports our file still reaches everybody else."""
    for given in (environ.get("SSL_CERT_FILE"), ssl.get_default_verify_paths().openssl_cafile):
        if given and Path(given).resolve() != files.roots.resolve():
            try:
                return Path(given).read_text(encoding="utf-8").rstrip() + "\n"
            except (OSError, UnicodeDecodeError):
                continue
    return certifi.contents().rstrip() + "\n"


def _read_certificate(path: Path) -> x509.Certificate | None:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError):
        return None


def _certificate_pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode("ascii")


def _key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    plain = serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain).decode("ascii")


def _publish(path: Path, text: str) -> None:
    """Atomically, and readable by everybody: nothing here is secret."""
    write_private(path, text)
    path.chmod(0o644)
