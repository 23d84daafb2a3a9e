"""Where user code is running: the request being answered, and the runner around it (if any).

Owns the two process-wide places that the toolkit, the app class and the runner share. Standard library only.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from fal._upload_policy import UploadPolicy


class RequestContext:
    """What ``self.current_request`` tells of the request being answered."""

    __slots__ = ("_headers", "_raw_headers", "base_url", "endpoint", "request_id")

    def __init__(
        self, request_id: str | None, endpoint: str, raw_headers: Iterable[tuple[bytes, bytes]], base_url: str
    ) -> None:
        self.request_id = request_id
        #: path of the route that answers, such as ``/``
        self.endpoint = endpoint
        #: public address of the platform as this caller sees it, without a trailing slash
        self.base_url = base_url
        self._raw_headers = raw_headers
        self._headers: Mapping[str, str] | None = None

    @property
    def headers(self) -> Mapping[str, str]:
        """The request's headers, names in lower case; the last of a repeated name wins."""
        if self._headers is None:
            pairs = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in self._raw_headers}
            self._headers = MappingProxyType(pairs)
        return self._headers

    @property
    def lifecycle_preference(self) -> dict[str, Any] | None:
        """How long the caller wants result files kept (``x-fal-object-lifecycle-preference``), if it said so."""
        raw = self.headers.get("x-fal-object-lifecycle-preference")
        if not raw:
            return None
        try:
            value = json.loads(raw)
        except ValueError:
            return None
        return value if isinstance(value, dict) else None

    @property
    def upload_policy(self) -> UploadPolicy | None:
        """The caller's own bucket for this request's files (``x-app-fal-upload-policy``), if it named one.

        Raises:
            UploadPolicyInputError: the header is none; requests with such a one do not reach the app.
        """
        from fal._upload_policy import HEADER, parse

        text = self.headers.get(HEADER)
        return None if text is None else parse(text)

    def __repr__(self) -> str:
        return f"RequestContext(request_id={self.request_id!r}, endpoint={self.endpoint!r})"


@dataclass(frozen=True)
class Place:
    """Where a file will be: its id, its public URL, and the request on whose behalf it is kept."""

    file_id: str
    url: str
    request: RequestContext | None


class Values(Protocol):
    """Values that an owner's apps share."""

    def call(
        self, verb: str, database: str, key: str, value: str | None = None, ttl_seconds: int | None = None
    ) -> str | None:
        """``get``, ``set`` or ``delete``; what ``get`` finds, else None. OSError says why it failed."""
        ...


class Runner(Protocol):
    """What the toolkit needs of the process that runs the app."""

    #: host[:port] values of the platform itself; downloads may reach them though they are private addresses
    storage_hosts: frozenset[str]
    #: None where no platform is behind the runner
    values: Values | None

    def store(self, source: bytes | Path, name: str, content_type: str) -> str | None:
        """Hand a file to the platform and return its public URL; None while no caller's address is known yet."""
        ...

    def reserve(self, name: str) -> Place | None:
        """Where a file will be; None as in ``store``."""
        ...

    def fill(self, place: Place, source: bytes | Path, name: str, content_type: str) -> None:
        """Hand over the file of a reserved place, once."""
        ...


_current: ContextVar[RequestContext | None] = ContextVar("fal_current_request", default=None)
_runner: Runner | None = None


def current_request() -> RequestContext | None:
    """The request that the calling task or thread answers, if any."""
    return _current.get()


def set_current_request(request: RequestContext | None) -> None:
    """Attribute everything that follows in this context to ``request``."""
    _current.set(request)


def runner() -> Runner | None:
    """The runner around this process; None in tests and local scripts."""
    return _runner


def set_runner(value: Runner | None) -> None:
    """Say which runner this process is."""
    global _runner
    _runner = value
