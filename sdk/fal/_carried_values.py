"""Values on their way between a caller and a function: msgpack whose extensions name a fixed list of kinds.

Nothing that arrives is code: a class is looked up by name among those that the receiver has already, must be of a kind
that only holds data, and gets its data back without its constructor. Leaves classes to ``fal._carried_classes``, pixels
and arrays to ``fal._carried_arrays``. Standard library and msgpack only.
"""

from __future__ import annotations

import datetime
import decimal
import enum
import pathlib
import uuid
from collections.abc import Callable
from typing import Any

import msgpack

from fal import _carried_arrays
from fal._carried_classes import CannotTravel, Classes
from fal.exceptions import FalMissingDependencyError, FalSerializationError

#: What an error says may be sent instead.
POSSIBLE = (
    "None, bool, int, float, complex, str, bytes, list, tuple, set, dict, dates and times, Decimal, UUID, Path, enums, "
    "named tuples, dataclasses and pydantic models of the function's files, exceptions, numpy arrays and PIL images"
)


class Kind(enum.IntEnum):
    """Code of a msgpack extension; what its data is stands beside it in the two tables below."""

    TUPLE = 1
    SET = 2
    FROZENSET = 3
    BIG_INT = 4
    DATETIME = 5
    DATE = 6
    TIME = 7
    TIMEDELTA = 8
    DECIMAL = 9
    UUID = 10
    PATH = 11
    COMPLEX = 12
    RANGE = 13
    ARRAY = 20
    IMAGE = 21
    ENUM = 30
    NAMED_TUPLE = 31
    DATACLASS = 32
    MODEL = 33
    TEXT = 34
    EXCEPTION = 35


def _moment(value: datetime.datetime) -> list[Any]:
    zone = getattr(value.tzinfo, "key", None)
    if zone is not None:
        value = value.replace(tzinfo=None)
    return [value.isoformat(), value.fold, zone]


def _moment_of(data: list[Any]) -> datetime.datetime:
    text, fold, zone = data
    value = datetime.datetime.fromisoformat(text).replace(fold=fold)
    if zone is None:
        return value
    from zoneinfo import ZoneInfo

    return value.replace(tzinfo=ZoneInfo(zone))


_PURE_PATHS = {"PurePosixPath": pathlib.PurePosixPath, "PureWindowsPath": pathlib.PureWindowsPath}


def _path(value: pathlib.PurePath) -> list[str]:
    name = type(value).__name__
    return [name, str(value)] if name in _PURE_PATHS else ["Path", value.as_posix()]


def _path_of(data: list[str]) -> pathlib.PurePath:
    return _PURE_PATHS.get(data[0], pathlib.Path)(data[1])


#: exact type -> kind, and what of it is packed
_PLAIN: dict[type, tuple[Kind, Callable[[Any], Any]]] = {
    tuple: (Kind.TUPLE, list),
    set: (Kind.SET, list),
    frozenset: (Kind.FROZENSET, list),
    int: (Kind.BIG_INT, lambda value: value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True)),
    datetime.datetime: (Kind.DATETIME, _moment),
    datetime.date: (Kind.DATE, datetime.date.isoformat),
    datetime.time: (Kind.TIME, lambda value: [value.isoformat(), value.fold]),
    datetime.timedelta: (Kind.TIMEDELTA, lambda value: [value.days, value.seconds, value.microseconds]),
    decimal.Decimal: (Kind.DECIMAL, str),
    uuid.UUID: (Kind.UUID, lambda value: value.bytes),
    complex: (Kind.COMPLEX, lambda value: [value.real, value.imag]),
    range: (Kind.RANGE, lambda value: [value.start, value.stop, value.step]),
    type(pathlib.Path()): (Kind.PATH, _path),
    pathlib.PurePosixPath: (Kind.PATH, _path),
    pathlib.PureWindowsPath: (Kind.PATH, _path),
}
_PLAIN_BACK: dict[Kind, Callable[[Any], Any]] = {
    Kind.TUPLE: tuple,
    Kind.SET: set,
    Kind.FROZENSET: frozenset,
    Kind.BIG_INT: lambda data: int.from_bytes(data, "big", signed=True),
    Kind.DATETIME: _moment_of,
    Kind.DATE: datetime.date.fromisoformat,
    Kind.TIME: lambda data: datetime.time.fromisoformat(data[0]).replace(fold=data[1]),
    Kind.TIMEDELTA: lambda data: datetime.timedelta(*data),
    Kind.DECIMAL: decimal.Decimal,
    Kind.UUID: lambda data: uuid.UUID(bytes=data),
    Kind.PATH: _path_of,
    Kind.COMPLEX: lambda data: complex(*data),
    Kind.RANGE: lambda data: range(*data),
    Kind.ARRAY: _carried_arrays.array_of,
    Kind.IMAGE: _carried_arrays.image_of,
}


class Codec:
    """Both directions for one function.

    Args:
        classes: which classes this side has.
    """

    def __init__(self, classes: Classes) -> None:
        self._classes = classes
        self._back: dict[Kind, Callable[[Any], Any]] = {
            **_PLAIN_BACK,
            Kind.ENUM: classes.enum_of,
            Kind.NAMED_TUPLE: classes.named_tuple_of,
            Kind.DATACLASS: classes.dataclass_of,
            Kind.MODEL: classes.model_of,
            Kind.TEXT: classes.text_of,
            Kind.EXCEPTION: classes.exception_of,
        }

    def encode(self, value: Any, what: str) -> bytes:
        """The value's bytes.

        Args:
            what: names the value in the error, such as ``argument 'x' of f()``.

        Raises:
            FalSerializationError: it cannot travel; says what can.
        """
        try:
            return self._pack(value)
        except CannotTravel as error:
            why = str(error)
        except RecursionError:
            why = "is nested too deep"
        except (ValueError, OverflowError) as error:
            # msgpack's own words for what is nested beyond its 511 levels are "recursion limit exceeded".
            deep = "recursion limit" in str(error)
            why = "is nested more than 500 levels deep, or holds itself" if deep else f"cannot be packed: {error}"
        raise FalSerializationError(
            f"{what} {why}. What can be sent: {POSSIBLE}. Files go as fal.toolkit.File, or as a path below /data."
        )

    def can_encode(self, value: Any) -> bool:
        """Whether ``encode`` would do it."""
        try:
            self._pack(value)
        except (CannotTravel, RecursionError, ValueError, OverflowError):
            return False
        return True

    def decode(self, data: bytes, what: str) -> Any:
        """The value of these bytes.

        Raises:
            FalSerializationError: they are none, or name a class that this side does not have.
            FalMissingDependencyError: numpy or Pillow is needed and not here.
        """
        try:
            return self._unpack(data)
        except FalMissingDependencyError as error:
            raise FalMissingDependencyError(f"{what} {error}") from None
        except CannotTravel as error:
            raise FalSerializationError(f"{what} {error}.") from None
        except Exception as error:
            raise FalSerializationError(f"{what} cannot be read: {type(error).__name__}: {error}") from error

    def _pack(self, value: Any) -> bytes:
        packed: bytes = msgpack.packb(
            value, default=self._tagged, strict_types=True, unicode_errors="surrogatepass", use_bin_type=True
        )
        return packed

    def _unpack(self, data: bytes) -> Any:
        return msgpack.unpackb(
            data, ext_hook=self._untagged, strict_map_key=False, raw=False, unicode_errors="surrogatepass"
        )

    def _tagged(self, value: Any) -> Any:
        plain = _PLAIN.get(type(value))
        if plain is not None:
            kind, content = plain[0], plain[1](value)
        else:
            kind, content = self._described(value)
        return msgpack.ExtType(int(kind), self._pack(content))

    def _described(self, value: Any) -> tuple[Kind, Any]:
        classes = self._classes
        if isinstance(value, enum.Enum):
            return Kind.ENUM, classes.enum_parts(value)
        if isinstance(value, BaseException):
            return Kind.EXCEPTION, classes.exception(value, self.can_encode)
        if (array := _carried_arrays.array(value)) is not None:
            return Kind.ARRAY, array
        if (image := _carried_arrays.image(value)) is not None:
            return Kind.IMAGE, image
        if (content := classes.model(value)) is not None:
            return Kind.MODEL, content
        if (content := classes.dataclass(value)) is not None:
            return Kind.DATACLASS, content
        if (content := classes.named_tuple(value)) is not None:
            return Kind.NAMED_TUPLE, content
        if (content := classes.text(value)) is not None:
            return Kind.TEXT, content
        raise CannotTravel(f"holds {_a_kind(type(value))}, which cannot be sent{_hint(value)}")

    def _untagged(self, code: int, data: bytes) -> Any:
        try:
            kind = Kind(code)
        except ValueError:
            raise CannotTravel(f"has a part of kind {code}, which this version of fal does not know") from None
        return self._back[kind](self._unpack(data))


def _a_kind(cls: type) -> str:
    name = cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
    return f"a value of type {name}"


def _hint(value: Any) -> str:
    """What to write instead, where that is known."""
    name = f"{type(value).__module__.partition('.')[0]}.{type(value).__qualname__}"
    if name == "torch.Tensor":
        return " (send value.cpu().numpy())"
    if name.startswith("pandas."):
        return " (send value.to_dict())"
    if hasattr(value, "__next__") and type(value).__module__ == "builtins":
        return " (send list(value))"
    for base in (str, int, float, list, dict, set, bytes):
        if isinstance(value, base):
            return f" (send {base.__name__}(value))"
    return ""
