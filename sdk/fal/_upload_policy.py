"""A caller's own bucket for what an app makes for it: the header ``x-app-fal-upload-policy``.

It holds what S3's presigned POST gives, ``{"url": ..., "fields": {...}}``, with ``${filename}`` in the field ``key``.
Leaves the sending to ``fal.toolkit.file.policy_uploads``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from fal.exceptions import AppException

HEADER = "x-app-fal-upload-policy"
_HEADER_BYTES = HEADER.encode()
PLACEHOLDER = "${filename}"
_MOST_CHARACTERS = 2048
#: What would end a header line or a quoted name inside the form.
_UNFIT = re.compile(r'[\x00-\x1f\x7f"\\]')


class UploadPolicyInputError(AppException):
    """The header is not a policy that files can be sent by: 422, before the app has done anything."""

    def __init__(self, what: str) -> None:
        super().__init__(message=f"Invalid {HEADER}: {what}", status_code=422)
        self.args = (self.message,)


@dataclass(frozen=True)
class UploadPolicy:
    """Where files go and the form fields that S3 wants with each, as the caller signed them."""

    url: str
    fields: Mapping[str, str]

    def place(self, name: str) -> tuple[str, dict[str, str]]:
        """The URL that the file will have, and its form fields."""
        key = self.fields["key"].replace(PLACEHOLDER, name)
        return f"{self.url.rstrip('/')}/{quote(key.lstrip('/'), safe='/~')}", {**self.fields, "key": key}


_running: Callable[[], Iterable[Iterable[tuple[bytes, bytes]]]] = tuple


def set_running(headers: Callable[[], Iterable[Iterable[tuple[bytes, bytes]]]]) -> None:
    """Say where the headers of all requests are that run in this process."""
    global _running
    _running = headers


def running_policies() -> list[UploadPolicy | None]:
    """The policy of each request that runs in this process."""
    return [_policy_of(headers) for headers in _running()]


def _policy_of(headers: Iterable[tuple[bytes, bytes]]) -> UploadPolicy | None:
    text = next((value for name, value in headers if name == _HEADER_BYTES), None)
    try:
        return None if text is None else parse(text.decode("latin-1"))
    except UploadPolicyInputError:
        return None  # it is being refused, and makes no files


def refusal(headers: Iterable[tuple[bytes, bytes]], over_socket: bool) -> str | None:
    """Why a request with these headers must not reach the app; names are in lower case.

    A connection's files have no single request that they are answers to, so that nobody could say which were refused.
    """
    for name, value in headers:
        if name == _HEADER_BYTES:
            if over_socket:
                return f"Invalid {HEADER}: it is not for connections; send it with a POST."
            try:
                parse(value.decode("latin-1"))
            except UploadPolicyInputError as error:
                return error.message
            return None
    return None


def parse(text: str) -> UploadPolicy:
    """The policy in a header's value.

    Raises:
        UploadPolicyInputError: it is none; says what is wrong with it.
    """
    try:
        policy = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UploadPolicyInputError(f"it is not JSON ({error}).") from None
    if not isinstance(policy, dict):
        raise UploadPolicyInputError('it must be an object with "url" and "fields".')
    return UploadPolicy(_url(policy.get("url")), _fields(policy.get("fields")))


def _url(url: Any) -> str:
    if not isinstance(url, str) or len(url) > _MOST_CHARACTERS or not url.isascii() or not url.isprintable():
        raise UploadPolicyInputError(f'"url" must be a URL of at most {_MOST_CHARACTERS} plain characters.')
    try:
        parts = urlsplit(url)
        named = bool(parts.hostname) and parts.port != 0
    except ValueError:
        named = False
        parts = urlsplit("")
    if not named or parts.scheme != "https" or " " in url:
        raise UploadPolicyInputError('"url" must be an https URL.')
    if parts.username or parts.password or parts.query or parts.fragment or "?" in url or "#" in url:
        raise UploadPolicyInputError('"url" must be a host and a path alone, without credentials, query or fragment.')
    if {".", ".."} & set(unquote(parts.path).replace("\\", "/").split("/")):
        raise UploadPolicyInputError('"url" must not have "." or ".." in its path.')
    return url


def _fields(given: Any) -> dict[str, str]:
    if not isinstance(given, dict):
        raise UploadPolicyInputError('"fields" must be an object.')
    fields = {}
    for name, value in given.items():
        if _UNFIT.search(name) or name.strip().lower() == "file":
            raise UploadPolicyInputError(f"the field {name[:80]!r} cannot be sent in a form.")
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise UploadPolicyInputError(f"the field {name[:80]!r} must be a string or a number.")
        fields[name] = str(value)
    try:
        json.dumps(fields, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise UploadPolicyInputError("its fields hold lone surrogates, which are no characters.") from None
    if sum(name.strip().lower() == "key" for name in fields) != 1 or PLACEHOLDER not in fields.get("key", ""):
        raise UploadPolicyInputError(
            f'"fields" must have one "key", which holds {PLACEHOLDER}: two files of one request would overwrite each '
            "other."
        )
    return fields
