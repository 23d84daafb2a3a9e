"""TLS of the server: a renewed certificate is taken without a restart, and handshakes have a bound of their own.

uvicorn has a setting for neither; asyncio would wait a minute for a handshake.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import structlog
import uvicorn

log = structlog.get_logger("gateway")


class Certificate:
    """The certificate's file, and when the running server last took it."""

    def __init__(self, config: uvicorn.Config) -> None:
        self._config = config
        self._taken_at = self._changed_at()

    def look(self) -> None:
        """New connections get the new certificate; a file that cannot be used is looked at again when it changes."""
        changed_at = self._changed_at()
        if changed_at is None or changed_at == self._taken_at:
            return
        self._taken_at = changed_at
        config = self._config
        assert config.ssl is not None
        try:
            config.ssl.load_cert_chain(str(config.ssl_certfile), config.ssl_keyfile)
            log.info("certificate reloaded", file=str(config.ssl_certfile))
        except (OSError, ssl.SSLError) as error:
            log.error("a renewed certificate cannot be used", file=str(config.ssl_certfile), error=str(error))

    def _changed_at(self) -> float | None:
        """When the certificate's file was written; None without one."""
        try:
            return os.stat(self._config.ssl_certfile).st_mtime if self._config.ssl_certfile else None
        except OSError:
            return None


@contextmanager
def bounded_handshakes(seconds: float) -> Iterator[None]:
    """Servers that are created on this loop meanwhile close connections whose handshake takes longer."""
    loop = asyncio.get_running_loop()
    create = loop.create_server

    async def create_server(*arguments: Any, **options: Any) -> asyncio.Server:
        if options.get("ssl") is not None:
            options["ssl_handshake_timeout"] = seconds
        server: asyncio.Server = await create(*arguments, **options)
        return server

    setattr(loop, "create_server", create_server)  # noqa: B010
    try:
        yield
    finally:
        delattr(loop, "create_server")
