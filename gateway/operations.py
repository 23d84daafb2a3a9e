"""What a control route takes and answers, said at its handler; ``openapi`` makes the document of it.

Leaves shapes to ``shapes`` and the words to the handlers' docstrings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from typing_extensions import is_typeddict

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Media:
    """A body or answer that is not JSON; ``events`` are the types of the data of server-sent events."""

    content_type: str
    events: tuple[Any, ...] = ()


#: A file, byte for byte.
BYTES = Media("application/octet-stream")


def events(*data: Any) -> Media:
    """Server-sent events whose data are JSON of these types."""
    return Media("text/event-stream", data)


@dataclass(frozen=True)
class Parameter:
    """A parameter of the query; ``schema`` is JSON Schema."""

    name: str
    schema: Mapping[str, Any]
    words: str


def limit(most: int, usual: int) -> Parameter:
    """``?limit=``, as ``control.page_size`` reads it."""
    return Parameter("limit", {"type": "integer", "minimum": 1, "maximum": most, "default": usual}, "How many at most.")


def switch(name: str, words: str) -> Parameter:
    """A parameter that is off unless it is ``1`` or ``true``."""
    return Parameter(name, {"type": "string", "enum": ["0", "1", "true", "false"], "default": "0"}, words)


@dataclass(frozen=True)
class Operation:
    """Of one handler.

    Args:
        status: of a success.
        answers: types and Media, one of which is answered then; nothing for an answer without a body.
        body: the type of a JSON body, or Media.
        partial: the body may leave out any of its fields, and what it leaves out stays as it is.
        refusals: statuses beyond those that every route of its kind has.
        needs_key: False for what anybody may ask.
    """

    status: int
    answers: tuple[Any, ...]
    body: Any = None
    partial: bool = False
    query: tuple[Parameter, ...] = ()
    refusals: tuple[int, ...] = ()
    needs_key: bool = True


def describe(
    status: int,
    *answers: Any,
    body: Any = None,
    partial: bool = False,
    query: tuple[Parameter, ...] = (),
    refusals: tuple[int, ...] = (),
    needs_key: bool = True,
) -> Callable[[F], F]:
    """Marks a handler with its Operation: the status of a success and what is answered then."""

    def mark(handler: F) -> F:
        handler.__operation__ = Operation(  # type: ignore[attr-defined]
            status, answers, body, partial, query, refusals, needs_key
        )
        return handler

    return mark


def body_fields(handler: Callable[..., Any]) -> frozenset[str] | None:
    """The fields that a handler's body may have; None where it was not said, or another check has words of its own."""
    found = getattr(handler, "__operation__", None)
    if not isinstance(found, Operation) or not is_typeddict(found.body):
        return None
    fields: frozenset[str] = found.body.__required_keys__ | found.body.__optional_keys__
    return fields


def operation_of(handler: Callable[..., Any]) -> Operation:
    """What was said at a handler.

    Raises:
        LookupError: nothing was.
    """
    found = getattr(handler, "__operation__", None)
    if not isinstance(found, Operation):
        raise LookupError(f"{handler.__qualname__} serves a control route: say with @describe(...) what it answers")
    return found
