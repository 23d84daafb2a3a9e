"""The key that signs webhooks: one per data folder, made once, whoever asks first.

Owns the file and the published form. Leaves what is signed to ``scheduler.control.webhooks`` and serving the key set to
the gateway.
"""

from __future__ import annotations

import base64
import hashlib
import os
import tempfile
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

KEY_FILE = "webhook_ed25519.key"


def load_or_create(data_dir: Path) -> Ed25519PrivateKey:
    """The signing key of ``data_dir``, made on the first call.

    Gateway and jobs ask at the same moment when a platform first starts, so the file appears whole or not at all and
    the second one reads what the first one made.

    Raises:
        ValueError: the file is there but holds no key.
        OSError: the folder cannot be read or written.
    """
    path = data_dir / KEY_FILE
    try:
        return _read(path)
    except FileNotFoundError:
        pass
    data_dir.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=".webhook-key-", dir=data_dir)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(Ed25519PrivateKey.generate().private_bytes_raw().hex() + "\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(name, path)
        except FileExistsError:
            pass
    finally:
        os.unlink(name)
    return _read(path)


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


def _read(path: Path) -> Ed25519PrivateKey:
    text = path.read_text(encoding="ascii").strip()
    try:
        return Ed25519PrivateKey.from_private_bytes(bytes.fromhex(text))
    except ValueError as error:
        raise ValueError(f"{path} is not a webhook signing key; move it away and a new one is made") from error
