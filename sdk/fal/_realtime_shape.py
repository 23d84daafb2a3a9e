"""What a ``@fal.realtime`` method takes and gives, read from its annotations: one value or many, and of which type.

Leaves sessions to ``fal._realtime``.
"""

from __future__ import annotations

import collections.abc
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, TypeAdapter

from fal._endpoints import RealtimeOptions, resolved_signature

Mode = Literal["unary", "server_streaming", "client_streaming", "bidi"]

_MANY_IN = (collections.abc.AsyncIterator, collections.abc.AsyncIterable, collections.abc.AsyncGenerator)
_MANY_OUT = (
    *_MANY_IN, collections.abc.Iterator, collections.abc.Iterable, collections.abc.Generator,
)  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """How a method is called.

    ``input_type``, ``output_type``: of one frame; ``Any`` where nothing is said. ``batch_as_list``: a batch is one
    list, not several arguments.
    """

    mode: Mode
    input_type: Any
    output_type: Any
    batch_as_list: bool
    adapter: TypeAdapter[Any]

    @property
    def many_in(self) -> bool:
        return self.mode in ("client_streaming", "bidi")

    @property
    def many_out(self) -> bool:
        return self.mode in ("server_streaming", "bidi")


def shape_of(owner: str, name: str, handler: Callable[..., Any], options: RealtimeOptions) -> Shape:
    """The shape of a bound method.

    Raises:
        ValueError: it takes no input, or takes a stream of them and is not async.
    """
    signature = resolved_signature(handler) or inspect.signature(handler)
    parameters = list(signature.parameters.values())
    if not parameters:
        raise ValueError(
            f"{owner}.{name} is a realtime endpoint: write `def {name}(self, input)`, with a pydantic model"
        )
    given = _annotation(parameters[0].annotation)
    returned = _annotation(signature.return_annotation)
    many_in = _is(given, _MANY_IN)
    many_out = inspect.isgeneratorfunction(handler) or inspect.isasyncgenfunction(handler) or _is(returned, _MANY_OUT)
    if _is(given, _MANY_OUT) and not many_in:
        raise ValueError(f"{owner}.{name} takes {given}: inputs come as they come, so annotate it with AsyncIterator")
    if many_in and not (inspect.iscoroutinefunction(handler) or inspect.isasyncgenfunction(handler)):
        raise ValueError(f"{owner}.{name} takes a stream of inputs: write `async def {name}(...)`")
    as_list = not many_in and options.max_batch_size > 1 and get_origin(given) is list
    input_type = options.input_modal or (_item(given) if many_in or as_list else given)
    output_type = options.output_modal or (_item(returned) if many_out else returned)
    mode: Mode = "bidi" if many_in and many_out else "client_streaming" if many_in else "unary"
    if many_out and not many_in:
        mode = "server_streaming"
    return Shape(mode, input_type, output_type, as_list, TypeAdapter(input_type))


def is_model(annotation: Any) -> bool:
    """Whether a document can describe it."""
    return inspect.isclass(annotation) and issubclass(annotation, BaseModel)


def _annotation(annotation: Any) -> Any:
    return Any if annotation is inspect.Parameter.empty or isinstance(annotation, str) else annotation


def _is(annotation: Any, kinds: tuple[Any, ...]) -> bool:
    return (get_origin(annotation) or annotation) in kinds


def _item(annotation: Any) -> Any:
    arguments = get_args(annotation)
    return arguments[0] if arguments else Any
