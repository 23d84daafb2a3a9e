"""``KVStore``: small values that all workers of an owner's apps share."""

from __future__ import annotations

from fal._context import runner
from fal.toolkit.exceptions import KVStoreException

#: What ``ttl`` may be, in seconds; the longest is also what a value without one gets.
MIN_TTL = 60
MAX_TTL = 30 * 86_400


class KVStore:
    """Text by key, kept by the platform; apps of one owner that name the same ``db_name`` see the same values.

    Each call is atomic by itself and no two together, so this is no place for counters or locks.

    Args:
        db_name: 1 to 255 characters.
    """

    def __init__(self, db_name: str) -> None:
        self.db_name = db_name

    def get(self, key: str) -> str | None:
        """The value, or None when there is none (any more).

        Raises:
            KVStoreException: the store did not answer.
        """
        return self._call("get", key)

    def set(self, key: str, value: str, ttl: int | None = None) -> None:
        """Keep ``value`` for ``ttl`` seconds: 60 to 2592000, which is 30 days and the default.

        Raises:
            KVStoreException: the ttl is out of bounds, the value is no text or over 1 MiB, or the store did not answer.
        """
        if not isinstance(value, str):
            raise KVStoreException(f"the value of {key!r} is a {type(value).__name__}, not a str; use json.dumps()")
        if ttl is not None and not MIN_TTL <= ttl <= MAX_TTL:
            raise KVStoreException(f"ttl={ttl} of {key!r}: it must be {MIN_TTL} to {MAX_TTL} seconds (30 days)")
        self._call("set", key, value, int(ttl) if ttl is not None else MAX_TTL)

    def delete(self, key: str) -> None:
        """Forget the value; fine when there is none.

        Raises:
            KVStoreException: the store did not answer.
        """
        self._call("delete", key)

    def _call(self, verb: str, key: str, value: str | None = None, ttl: int | None = None) -> str | None:
        around = runner()
        if around is None or around.values is None:
            raise KVStoreException(f"KVStore({self.db_name!r}) needs a platform: it works in an app under `fal run`")
        try:
            return around.values.call(verb, self.db_name, key, value, ttl)
        except (OSError, UnicodeError) as error:
            raise KVStoreException(f"cannot {verb} {key!r} in {self.db_name!r}: {error}") from error
