"""One call of a function as bytes: what a caller sends, and what comes back. Both sides read it.

Leaves the values to ``fal._carried_values``.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import msgpack

from fal._carried_classes import CannotTravel, text_of
from fal._carried_values import Codec
from fal.exceptions import FalSerializationError, FalServerlessException, UserFunctionException

#: Content type of both directions.
CONTENT_TYPE = "application/x-fal-call"
VERSION = 1
#: Bytes that the value of a call may take: what the gateway takes of a request, unless its operator changed that.
MOST_RESULT_BYTES = 64 * 1024 * 1024


class RemoteTraceback(Exception):
    """Where a function failed on its runner; the cause of what is raised on the caller's side."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text.rstrip()}\n"""'


def pack_call(codec: Codec, name: str, arguments: Sequence[tuple[str | None, str, Any]]) -> bytes:
    """The body of a call.

    Args:
        name: the function's, for messages.
        arguments: keyword (None for a positional one), the parameter's name, value.

    Raises:
        FalSerializationError: names the argument that cannot travel.
    """
    positional, named = [], {}
    for keyword, parameter, value in arguments:
        packed = codec.encode(value, f"argument {parameter!r} of {name}()")
        if keyword is None:
            positional.append(packed)
        else:
            named[keyword] = packed
    body: bytes = msgpack.packb({"version": VERSION, "args": positional, "kwargs": named})
    return body


def unpack_call(codec: Codec, name: str, body: bytes) -> tuple[list[Any], dict[str, Any]]:
    """Positional and keyword arguments.

    Raises:
        FalSerializationError: the body is no call, or an argument cannot be read here.
    """
    call = _unpacked(body, f"the call of {name}()")
    arguments, named = call.get("args"), call.get("kwargs")
    if not isinstance(arguments, list) or not isinstance(named, dict):
        raise FalSerializationError(f"the call of {name}() has no arguments.")
    positional = [codec.decode(data, f"argument {number} of {name}()") for number, data in enumerate(arguments, 1)]
    return positional, {key: codec.decode(data, f"argument {key!r} of {name}()") for key, data in named.items()}


def pack_value(codec: Codec, name: str, value: Any) -> bytes:
    """The answer of a call that returned.

    Raises:
        FalSerializationError: the value cannot travel or is too large.
    """
    packed = codec.encode(value, f"the value that {name}() returns")
    if len(packed) > MOST_RESULT_BYTES:
        raise FalSerializationError(
            f"the value that {name}() returns takes {len(packed) / 2**20:.1f} MiB; at most "
            f"{MOST_RESULT_BYTES >> 20} MiB can be sent. Return a fal.toolkit.File, or the path of a file below /data."
        )
    body: bytes = msgpack.packb({"version": VERSION, "value": packed})
    return body


def pack_error(codec: Codec, error: BaseException, trace: TracebackType | None) -> bytes:
    """The answer of a call that raised: the exception where it can travel, and in any case what it says."""
    cls = type(error)
    module = "" if cls.__module__ == "builtins" else f"{cls.__module__}."
    try:
        packed = codec.encode(error, "the exception")
    except FalSerializationError:
        packed = None
    text = "".join(traceback.format_exception(cls, error, trace))
    # Not to be taken for the caller's own wish to end, or for the end of an iteration.
    whole = (
        packed if isinstance(error, Exception) and not isinstance(error, (StopIteration, StopAsyncIteration)) else None
    )
    said = {"exception": whole, "class": f"{module}{cls.__qualname__}", "text": text_of(error), "traceback": text}
    body: bytes = msgpack.packb({"version": VERSION, "error": said}, unicode_errors="replace")
    return body


def unpack_answer(codec: Codec, name: str, body: bytes) -> Any:
    """What the function returned; raises what it raised, with the remote traceback as the cause.

    Raises:
        UserFunctionException: in the place of an exception whose class is not here.
        FalSerializationError: the value cannot be read here.
    """
    answer = _unpacked(body, f"the answer of {name}()")
    if (said := answer.get("error")) is not None:
        raise _raised(codec, said) from RemoteTraceback(said["traceback"])
    return codec.decode(answer["value"], f"the value that {name}() returned")


def _raised(codec: Codec, said: Mapping[str, Any]) -> BaseException:
    if said["exception"] is not None:
        try:
            error = codec.decode(said["exception"], "the exception")
        except (FalServerlessException, CannotTravel):
            pass
        else:
            if isinstance(error, Exception):
                return error
    return UserFunctionException(f"{said['class']}: {said['text']}" if said["text"] else said["class"])


def _unpacked(body: bytes, what: str) -> dict[str, Any]:
    try:
        content = msgpack.unpackb(body)
    except Exception as error:  # noqa: BLE001 - msgpack has many words for bytes that it cannot read
        raise FalSerializationError(f"{what} cannot be read: {type(error).__name__}: {error}") from None
    if not isinstance(content, dict) or content.get("version") != VERSION:
        version = content.get("version") if isinstance(content, dict) else None
        raise FalSerializationError(
            f"{what} is of version {version!r}, and this side reads {VERSION}: use the same Keepwarm on both sides."
        )
    return content
