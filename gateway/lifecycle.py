"""Reads what a caller wants for files, out of a request's head."""

from __future__ import annotations

from scheduler.store import Lifecycle
from scheduler.store.lifecycle import parse_lifecycle

from .errors import bad_request
from .incoming import Head

#: Of an upload, and of the files that an app makes for a call; uploads understand both.
_UPLOAD = b"x-fal-object-lifecycle"
_PREFERENCE = b"x-fal-object-lifecycle-preference"


def lifecycle(head: Head, owner: str) -> Lifecycle:
    """What the headers say of an uploaded file of ``owner``.

    Raises:
        Refusal: 400 when they cannot be read.
    """
    for name in (_UPLOAD, _PREFERENCE):
        if head.options and name in head.options:
            return _read(head.options[name], name, owner)
    return Lifecycle(owner=owner)


def check_preference(head: Head) -> None:
    """Refuse a call that says what to do with its files in words that nobody will understand.

    Raises:
        Refusal: 400.
    """
    given = head.options.get(_PREFERENCE) if head.options else None
    if given is not None:
        _read(given, _PREFERENCE, "")


def _read(given: bytes, name: bytes, owner: str) -> Lifecycle:
    try:
        return parse_lifecycle(given, owner)
    except ValueError as error:
        raise bad_request(f"{name.decode('ascii')} cannot be used: {error}.") from None
