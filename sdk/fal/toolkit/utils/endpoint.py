"""Helpers for endpoints."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any


@asynccontextmanager
async def cancel_on_disconnect(request: Any) -> AsyncIterator[None]:
    """Cancel the block when the caller has gone.

    The platform does that to every async handler by itself; existing code may go on saying so.
    """
    yield
