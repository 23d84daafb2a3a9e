"""Secrets: values that an owner's apps get as variables of their environment. Sealed at rest; whoever lists them sees
names only.

Each is sealed with AES-256-GCM under the data folder's key, bound to its owner, named environment and name, so that
neither Redis nor a copy of its file tells a value, and no sealed value can be put in another's place.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import orjson
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from . import keys, signing
from .connection import Arg, Redis
from .records import SecretRecord

_NONCE_BYTES = 12


class Secrets:
    """Verbs on secrets. Those of one owner and named environment are no other's."""

    def __init__(self, redis: Redis, data_dir: Path) -> None:
        self._redis = redis
        self._data_dir = data_dir

    async def set(self, owner: str, env: str, values: Mapping[str, str], *, exposed: bool) -> None:
        """Keeps all of ``values`` or none, in place of earlier ones of their names.

        Args:
            exposed: apps that do not list their secrets get these too.

        Raises:
            OSError: the folder of the key cannot be written. StoreUnavailable. StoreFull.
        """
        clock = await self._redis.command("TIME")
        fields: list[Arg] = []
        for name, value in values.items():
            record = {
                "sealed": self._seal(owner, env, name, value),
                "exposed": exposed,
                "updated_at": int(clock[0]) * 1000,
            }
            fields += [name, orjson.dumps(record)]
        await self._redis.command("HSET", keys.secrets(owner, env), *fields)

    async def list(self, owner: str, env: str) -> list[SecretRecord]:
        """All secrets by name, without their values."""
        reply = await self._redis.command("HGETALL", keys.secrets(owner, env))
        found = []
        for i in range(0, len(reply), 2):
            record = orjson.loads(reply[i + 1])
            found.append(SecretRecord(reply[i].decode(), bool(record["exposed"]), int(record["updated_at"])))
        return sorted(found, key=lambda secret: secret.name)

    async def unset(self, owner: str, env: str, name: str) -> bool:
        """Forgets one; False when there is none."""
        return bool(await self._redis.command("HDEL", keys.secrets(owner, env), name))

    async def forget_all(self, owner: str, env: str) -> None:
        """Forgets every secret of a named environment."""
        await self._redis.command("DEL", keys.secrets(owner, env))

    async def values(self, owner: str, env: str, names: Sequence[str] | None) -> dict[str, str]:
        """What an app gets: those of ``names`` that exist, or all exposed ones for None.

        Raises:
            ValueError: one cannot be unsealed; says which and what to do. StoreUnavailable.
        """
        reply = await self._redis.command("HGETALL", keys.secrets(owner, env))
        values = {}
        for i in range(0, len(reply), 2):
            name, record = reply[i].decode(), orjson.loads(reply[i + 1])
            if record["exposed"] if names is None else name in names:
                values[name] = self._unseal(owner, env, name, record["sealed"])
        return values

    def _cipher(self) -> AESGCM:
        return AESGCM(signing.sealing_key(self._data_dir))

    def _seal(self, owner: str, env: str, name: str, value: str) -> str:
        nonce = os.urandom(_NONCE_BYTES)
        sealed = self._cipher().encrypt(nonce, value.encode(), _bound_to(owner, env, name))
        return base64.b64encode(nonce + sealed).decode()

    def _unseal(self, owner: str, env: str, name: str, text: str) -> str:
        raw = base64.b64decode(text)
        try:
            value = self._cipher().decrypt(raw[:_NONCE_BYTES], raw[_NONCE_BYTES:], _bound_to(owner, env, name))
        except InvalidTag:
            path = self._data_dir / signing.SEALING_FILE
            raise ValueError(
                f"the secret {name} cannot be read: it was sealed with another key than {path}. Next: set it again "
                f"with `fal secrets set {name}`"
            ) from None
        return value.decode()


def _bound_to(owner: str, env: str, name: str) -> bytes:
    return orjson.dumps([owner, env, name])
