"""The store's errors. A docstring is the default message.

StoreError
├── StoreUnavailable     Redis does not answer            -> 503, Retry-After
├── StoreFull            out of memory, or of disk        -> 503, Retry-After
├── QueueFull            the caller's fal_max_queue_length -> 429
├── IdempotencyConflict  same key, other body             -> 422
├── StaleLeader          another scheduler leads          -> stop leading
├── NotFound             no such app, revision, request   -> 404
└── InboxClosed          a draining worker holds nothing  -> the worker may leave
"""

from __future__ import annotations


class StoreError(Exception):
    """The store refused or failed."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or "").split("\n")[0])


class StoreUnavailable(StoreError):
    """Redis does not answer. The request was not confirmed as stored; try again in a moment."""


class StoreFull(StoreError):
    """Redis has reached its memory limit and takes no new requests; work in progress goes on."""


class QueueFull(StoreError):
    """The queue is longer than the caller allows."""


class IdempotencyConflict(StoreError):
    """This idempotency key was used within the last 24 hours with a different body."""


class StaleLeader(StoreError):
    """Another scheduler leads; this one's decision was refused."""


class NotFound(StoreError):
    """No such record."""


class InboxClosed(StoreError):
    """The inbox takes nothing new and holds nothing more."""
