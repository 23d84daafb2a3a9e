"""Values that an owner's apps share: asked of the platform over the runner's own socket, so no token is needed."""

from __future__ import annotations

import itertools

from fal._runner.channel import Channel
from fal._runner.protocol import ValueCall

#: Longest wait for an answer: the platform itself gives up on its store earlier.
_PATIENCE_SECONDS = 30.0


class PlatformValues:
    """The platform's key-value store as the toolkit sees it (``fal._context.Values``)."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._numbers = itertools.count(1)

    def call(
        self, verb: str, database: str, key: str, value: str | None = None, ttl_seconds: int | None = None
    ) -> str | None:
        """``get``, ``set`` or ``delete``; what ``get`` finds, else None.

        Raises:
            OSError: the platform refused, failed or did not answer; the message says which.
        """
        call = ValueCall(next(self._numbers), verb, database, key, value, ttl_seconds)
        reply = self._channel.ask(call, _PATIENCE_SECONDS)
        if reply.error is not None:
            raise OSError(reply.error)
        return reply.value
