"""The key that signs webhooks, the secret behind tokens and the key that seals secrets: one each per data folder, made
once, whoever asks first.

Owns the files and the signing key's published form. Leaves what is signed to ``scheduler.control.webhooks`` and
``gateway.tokens``, sealing to ``secrets``, and serving the key set to the gateway.
"""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
import tempfile
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

KEY_FILE = "webhook_ed25519.key"
SECRET_FILE = "tokens.key"
SEALING_FILE = "secrets.key"


def load_or_create(data_dir: Path) -> Ed25519PrivateKey:
    """The key of ``data_dir`` that signs webhooks, made on the first call.

    Raises:
        ValueError: the file is there but holds no key.
        OSError: the folder cannot be read or written.
    """
    path = data_dir / KEY_FILE
    text = _made_once(path, lambda: Ed25519PrivateKey.generate().private_bytes_raw().hex())
    try:
        return Ed25519PrivateKey.from_private_bytes(bytes.fromhex(text))
    except ValueError as error:
        raise ValueError(f"{path} is not a webhook signing key; move it away and a new one is made") from error


def token_secret(data_dir: Path) -> bytes:
    """The secret of ``data_dir`` behind tokens and signed URLs, made on the first call.

    Raises:
        ValueError: the file is there but holds no secret.
        OSError: the folder cannot be read or written.
    """
    path = data_dir / SECRET_FILE
    secret = _random_bytes(path)
    if secret is None:
        raise ValueError(f"{path} is not a token secret; move it away and a new one is made")
    return secret


def sealing_key(data_dir: Path) -> bytes:
    """The key of ``data_dir`` that users' secrets are sealed with, made on the first call.

    Raises:
        ValueError: the file is there but holds no key.
        OSError: the folder cannot be read or written.
    """
    path = data_dir / SEALING_FILE
    key = _random_bytes(path)
    if key is None:
        raise ValueError(f"{path} is not the key of the secrets; put the right file back, or set every secret again")
    return key


def _random_bytes(path: Path) -> bytes | None:
    """The 256 random bits of a file; None when it holds something else."""
    text = _made_once(path, lambda: secrets.token_hex(32))
    try:
        secret = bytes.fromhex(text)
    except ValueError:
        return None
    return secret if len(secret) == 32 else None


def _made_once(path: Path, make: Callable[[], str]) -> str:
    """What the file holds, written by whoever asks first.

    Services ask at the same moment when a platform first starts, so the file appears whole or not at all and the second
    one reads what the first one made.
    """
    try:
        return path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        pass
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(make() + "\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(name, path)
        except FileExistsError:
            pass
    finally:
        os.unlink(name)
    return path.read_text(encoding="ascii").strip()


def public_key_set(key: Ed25519PrivateKey) -> dict[str, list[dict[str, str]]]:
    """The JWKS document of ``key``.

    ``x`` keeps its base64 padding, against the JWK rules: the verification recipe in fal's documentation decodes
    without adding any and fails on an unpadded value.
    """
    raw = key.public_key().public_bytes_raw()
    return {
        "keys": [
            {
                "kty": "OKP",
                "crv": "Ed25519",
                "use": "sig",
                "alg": "EdDSA",
                "kid": hashlib.sha256(raw).hexdigest()[:16],
                "x": base64.urlsafe_b64encode(raw).decode("ascii"),
            }
        ]
    }
