"""API keys: ``id:secret``, of which only a digest of the secret is stored.

An app's own key has the app as its id. Its secret is made of a stored salt and the data folder's sealing key, so that
every host finds the same one and Redis alone tells none.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
import uuid
from pathlib import Path

from fal._spec import KeyScope

from . import keys, signing
from .connection import Redis
from .records import ApiKeyRecord
from .scripts import SCRIPTS


class ApiKeys:
    """Verbs on API keys."""

    def __init__(self, redis: Redis, data_dir: Path) -> None:
        self._redis = redis
        self._data_dir = data_dir

    async def create(self, owner: str, name: str, scope: KeyScope = "FULL") -> tuple[ApiKeyRecord, str]:
        """A new key and its secret (256 random bits), which is shown this once."""
        secret = secrets.token_hex(32)
        return await self.put(str(uuid.uuid4()), secret, owner, name, scope), secret

    async def of_app(self, app: str) -> str | None:
        """``id:secret`` of the app's own key, with which it may call its owner's apps; made on the first call.

        It stays the same until it is revoked, then a new one is made, and ends with the app. None for an app that is
        gone.

        Raises:
            OSError, ValueError: the sealing key cannot be read. StoreUnavailable.
        """
        salt = secrets.token_hex(16)
        owner = app.partition("/")[0]
        reply = await SCRIPTS["issue_app_key"](
            self._redis,
            app,
            owner=owner,
            name=f"of the app {app}",
            salt=salt,
            digest=_digest(self._app_secret(app, salt)),
        )
        if reply is None:
            return None
        await self._redis.command("SADD", keys.api_keys(), app)
        return f"{app}:{self._app_secret(app, reply.decode())}"

    def _app_secret(self, app: str, salt: str) -> str:
        sealing = signing.sealing_key(self._data_dir)
        return hmac.new(sealing, f"key of the app {app} {salt}".encode(), hashlib.sha256).hexdigest()

    async def put(self, key_id: str, secret: str, owner: str, name: str, scope: KeyScope = "FULL") -> ApiKeyRecord:
        """Stores a key whose id and secret are known already, such as the one in a file of the operator."""
        clock = await self._redis.command("TIME")
        created = int(clock[0]) * 1000
        await asyncio.gather(
            self._redis.command("SADD", keys.api_keys(), key_id),
            self._redis.command(
                "HSET",
                keys.api_key(key_id),
                *("owner", owner, "name", name, "digest", _digest(secret), "created_at", created, "revoked", "0"),
                *("scope", scope),
            ),
        )
        return ApiKeyRecord(key_id, owner, name, created, scope=scope)

    async def verify(self, key_id: str, secret: str) -> ApiKeyRecord | None:
        """The key, if the secret is right and it was not revoked; comparing takes the same time for every secret."""
        record, digest = await self._read(key_id)
        right = hmac.compare_digest(digest, _digest(secret))
        return record if right and record is not None and not record.revoked else None

    async def get(self, key_id: str) -> ApiKeyRecord | None:
        """The key of an id, revoked or not."""
        return (await self._read(key_id))[0]

    async def list(self) -> list[ApiKeyRecord]:
        """All keys, oldest first, revoked ones included."""
        ids = await self._redis.command("SMEMBERS", keys.api_keys())
        found = await asyncio.gather(*(self._read(key_id.decode()) for key_id in ids))
        return sorted((record for record, _ in found if record), key=lambda r: (r.created_at_ms, r.key_id))

    async def revoke(self, key_id: str) -> bool:
        """Makes a key invalid for good; False when there is none."""
        if not await self._redis.command("EXISTS", keys.api_key(key_id)):
            return False
        await self._redis.command("HSET", keys.api_key(key_id), "revoked", "1")
        return True

    async def _read(self, key_id: str) -> tuple[ApiKeyRecord | None, str]:
        reply = await self._redis.command("HGETALL", keys.api_key(key_id))
        fields = {reply[i].decode(): reply[i + 1].decode() for i in range(0, len(reply), 2)}
        if not fields:
            return None, _digest("")
        record = ApiKeyRecord(
            key_id,
            fields["owner"],
            fields["name"],
            int(fields["created_at"]),
            fields["revoked"] == "1",
            fields.get("scope", "FULL"),  # keys of earlier versions have none
        )
        return record, fields["digest"]


def _digest(secret: str) -> str:
    # the secret has 256 random bits: a slow hash would add nothing but a way to keep us busy
    return hashlib.sha256(secret.encode()).hexdigest()
