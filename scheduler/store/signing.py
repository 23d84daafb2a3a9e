"""The key that signs webhooks and the secret behind tokens: one each per data folder, made once, whoever asks first.

Owns the files and the key's published form. Leaves what is signed to ``scheduler.control.webhooks`` and
``gateway.tokens``, and serving the key set to the gateway.
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
    text = _made_once(path, lambda: secrets.token_hex(32))
    try:
        secret = bytes.fromhex(text)
    except ValueError:
        secret = b""
    if len(secret) != 32:
        raise ValueError(f"{path} is not a token secret; move it away and a new one is made")
    return secret


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
