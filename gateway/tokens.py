"""Short-lived tokens in a key's place: for calls from browsers, for the file server, and inside the URLs of uploads.

Signed with a secret of the data folder, so that every gateway knows the others' tokens and none is stored. Leaves
whether the key behind a token is still good to ``auth``.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Literal

import jwt

from scheduler.store import signing

from .errors import Refusal, unauthorized

#: What a token is good for; one of another kind is refused.
Purpose = Literal["call", "files", "upload"]

_ALGORITHM = "HS256"
#: Seconds that the clocks of two gateways may differ: what one just issued is of the other's future.
LEEWAY_SECONDS = 60


class Tokens:
    """Makes and reads tokens. ``data_dir`` holds the secret."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._secret: bytes | None = None

    def issue(self, purpose: Purpose, seconds: int, **claims: Any) -> str:
        """A token that ends after ``seconds``."""
        now = int(time.time())
        return jwt.encode({**claims, "aud": purpose, "iat": now, "exp": now + seconds}, self._key(), _ALGORITHM)

    def read(self, token: str, purpose: Purpose) -> dict[str, Any]:
        """The claims of a token.

        Raises:
            Refusal: 401 when it is none of ours, has expired or is good for something else.
        """
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                self._key(),
                algorithms=[_ALGORITHM],
                audience=purpose,
                leeway=LEEWAY_SECONDS,
                options={"require": ["aud", "exp"]},
            )
        except jwt.ExpiredSignatureError:
            raise unauthorized("This token has expired. Ask for a new one.") from None
        except jwt.InvalidTokenError:
            raise unauthorized("This token is not valid here.") from None
        return claims

    def check_call(self, token: str, app: str) -> str:
        """The id of the key behind a token for calls.

        Raises:
            Refusal: 401 for a bad token, 403 when it was made for other apps.
        """
        claims = self.read(token, "call")
        allowed: list[str] = claims["apps"]
        # Clients name an app by its alias alone, whoever its owner is; the key decides about that.
        if app not in allowed and app.split("/", 1)[1] not in allowed:
            raise Refusal(403, f'This token was made for {", ".join(allowed)} and may not call "{app}".')
        return str(claims["sub"])

    def _key(self) -> bytes:
        if self._secret is None:
            self._secret = signing.token_secret(self._data_dir)
        return self._secret
