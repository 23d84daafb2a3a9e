"""Who calls, and whether that may be: API keys and their scopes, the three kinds of apps, ownership in the control API.

Leaves keys themselves to the store, which knows only their hashes.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import time
from typing import Literal, get_args

from scheduler.store import Store
from scheduler.store.records import ApiKeyRecord, AppRecord

from .errors import Refusal, unauthorized

#: A key that was just verified is believed for so long; a revoked key stops working by then.
REMEMBER_SECONDS = 3.0
_MOST_REMEMBERED = 1024
_HOW = 'Send the header "Authorization: Key <id>:<secret>"; "keepwarm keys create" prints a key.'


#: What a route needs. ``call``: calls of apps, their results, uploads of inputs; ``read``: looking at apps, runners and
#: logs; ``manage``: changing them; ``keys``: making and revoking keys.
Right = Literal["call", "read", "manage", "keys"]
RIGHTS: dict[str, frozenset[Right]] = {
    "FULL": frozenset(get_args(Right)),
    "API": frozenset({"call"}),
    "DEPLOY": frozenset({"read", "manage"}),
    "READONLY": frozenset({"read"}),
}
_MAY_ONLY = {
    "API": "call apps",
    "DEPLOY": "deploy and look after apps",
    "READONLY": "look at apps, runners and logs",
}


def check_scope(key: ApiKeyRecord, *rights: Right) -> None:
    """Whether the key's scope has one of ``rights``; 403 otherwise."""
    if RIGHTS.get(key.scope, frozenset()).isdisjoint(rights):
        may = _MAY_ONLY.get(key.scope, "do what a newer version of this platform knows")
        those = " or ".join(scope for scope, has in RIGHTS.items() if not has.isdisjoint(rights))
        raise Refusal(
            403, f'The key "{key.key_id}" has the scope {key.scope} and may only {may}: this needs one of {those}.'
        )


class Keys:
    """Verifies credentials and remembers the good ones for a moment.

    Remembered by SHA-256 of the whole header: how long a look-up takes says nothing about a secret.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._remembered: dict[bytes, tuple[float, ApiKeyRecord]] = {}

    async def identify(self, authorization: bytes | None) -> ApiKeyRecord | None:
        """The key behind an Authorization header, None without a header.

        Raises:
            Refusal: 401 when there is a header and it is no valid key.
        """
        if not authorization:
            return None
        digest = hashlib.sha256(authorization).digest()
        entry = self._remembered.get(digest)
        if entry is not None and time.monotonic() < entry[0]:
            return entry[1]
        key_id, secret = _credentials(authorization)
        record = await self._store.keys.verify(key_id, secret)
        if record is None or record.revoked:
            self._remembered.pop(digest, None)
            raise unauthorized(f"This API key is not valid: unknown, revoked or mistyped. {_HOW}")
        self._remember(digest, record)
        return record

    async def require(self, authorization: bytes | None) -> ApiKeyRecord:
        """The key behind the header; 401 without one."""
        key = await self.identify(authorization)
        if key is None:
            raise unauthorized(f"This needs an API key. {_HOW}")
        return key

    async def of_token(self, key_id: str) -> ApiKeyRecord:
        """The key that a token was made with.

        Raises:
            Refusal: 401 when it was revoked since.
        """
        digest = b"token of " + key_id.encode()
        entry = self._remembered.get(digest)
        if entry is not None and time.monotonic() < entry[0]:
            return entry[1]
        record = await self._store.keys.get(key_id)
        if record is None or record.revoked:
            raise unauthorized("This token is not valid: the key that it was made with was revoked. Ask for a new one.")
        self._remember(digest, record)
        return record

    def _remember(self, digest: bytes, record: ApiKeyRecord) -> None:
        if len(self._remembered) >= _MOST_REMEMBERED:
            self._remembered.clear()
        self._remembered[digest] = (time.monotonic() + REMEMBER_SECONDS, record)

    def forget(self) -> None:
        """A key was revoked through this process."""
        self._remembered.clear()


def _credentials(authorization: bytes) -> tuple[str, str]:
    """Key id and secret out of ``Key id:secret``, ``Bearer id:secret`` or HTTP Basic."""
    try:
        scheme, _, value = authorization.decode("ascii").strip().partition(" ")
        if scheme.lower() == "basic":
            value = base64.b64decode(value.strip(), validate=True).decode("ascii")
        key_id, colon, secret = value.strip().partition(":")
    except (UnicodeDecodeError, binascii.Error):
        raise unauthorized(f"The Authorization header cannot be read. {_HOW}") from None
    if scheme.lower() not in ("key", "bearer", "basic") or not colon or not key_id or not secret:
        raise unauthorized(f"The Authorization header is not of the form Key <id>:<secret>. {_HOW}")
    if len(key_id) > 200 or len(secret) > 512:
        raise unauthorized(f"This API key is not valid: it is too long. {_HOW}")
    return key_id, secret


def check_app(app: AppRecord, key: ApiKeyRecord | None, *rights: Right) -> None:
    """Whether this caller may call this app, or ask for what came of it.

    Raises:
        Refusal: 401 without a key, 403 with a key of somebody else, or without one of ``rights``.
    """
    if app.auth == "public":
        return
    if key is None:
        raise unauthorized(f'The app "{app.app}" is {app.auth}: it needs an API key. {_HOW}')
    if app.auth == "private":
        check_owner(app.app.split("/", 1)[0], key)
    check_scope(key, *rights)


def check_owner(owner: str, key: ApiKeyRecord) -> None:
    """Whether a key may act for ``owner``; 403 otherwise."""
    if key.owner != owner:
        raise Refusal(
            403, f'The key "{key.key_id}" belongs to "{key.owner}" and may not use what belongs to "{owner}".'
        )
