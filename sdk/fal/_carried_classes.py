"""Objects of named classes as plain data and back: enums, named tuples, dataclasses, pydantic models, exceptions.

Owns which classes count: those of the function's files, and of modules that are loaded here already. An object is put
together from its data; no constructor of user code runs.
"""

from __future__ import annotations

import dataclasses
import enum
import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

#: What stands for the function's own file, whose module is ``__main__`` for whoever runs it as a script.
OWN_FILE = ""
#: Classes whose objects are made of one text, and how that is got.
_TEXTS: dict[tuple[str, str], Callable[[Any], str]] = {
    **{("ipaddress", f"IPv{n}{kind}"): str for n in (4, 6) for kind in ("Address", "Network", "Interface")},
    **{("pydantic_core._pydantic_core", name): str for name in ("Url", "MultiHostUrl")},
    **{("pydantic.types", name): lambda value: value.get_secret_value() for name in ("SecretStr", "SecretBytes")},
}


class CannotTravel(Exception):
    """A clause that goes on after the name of the value."""


class Classes:
    """The classes that one side of a call has.

    Args:
        own: the module of the function's file.
        roots: folders of the function's files; modules in them may be imported to find a class.
    """

    def __init__(self, own: ModuleType, roots: Sequence[Path]) -> None:
        self._own = own
        self._roots = tuple(roots)

    # --- names --------------------------------------------------------------------------------------------------------

    def name(self, cls: type) -> list[str]:
        """Module and qualified name.

        Raises:
            CannotTravel: the other side could not find it by them.
        """
        module = OWN_FILE if cls.__module__ == self._own.__name__ else cls.__module__
        if module == "__main__":
            raise CannotTravel(
                f"holds an object of {cls.__qualname__}, which the started script defines: define the class in the "
                "function's file, or in a module that it imports"
            )
        try:
            found = self.find(module, cls.__qualname__)
        except CannotTravel:
            found = None
        if found is not cls:
            raise CannotTravel(
                f"holds an object of {cls.__module__}.{cls.__qualname__}, which cannot be found by that name: define "
                "the class at the top level of a file"
            )
        return [module, cls.__qualname__]

    def find(self, module: str, name: str) -> type:
        """The class of that name.

        Raises:
            CannotTravel: there is none, or it is not defined there under that name.
        """
        owner = self._module(module)
        target: Any = owner
        for part in name.split("."):
            target = vars(target).get(part) if isinstance(target, (ModuleType, type)) else None
        if (
            not isinstance(target, type)
            or target.__qualname__ != name
            or target.__module__ not in (owner.__name__, module)
        ):
            raise CannotTravel(f"is of a class {name} that {module or 'the file of the function'} does not define")
        return target

    def _module(self, name: str) -> ModuleType:
        if name == OWN_FILE:
            return self._own
        # A package's __main__ runs as soon as it is imported.
        plain = all(part.isidentifier() and not part.startswith("__") for part in name.split("."))
        loaded = sys.modules.get(name)
        if loaded is not None and name != "__main__":
            return loaded
        if plain and (self._in_a_root(name) or name.partition(".")[0] in sys.modules):
            try:
                return importlib.import_module(name)
            except Exception as error:
                why = f"cannot be imported: {type(error).__name__}: {error}"
                raise CannotTravel(f"is of a class of the module {name}, which {why}") from error
        raise CannotTravel(
            f"is of a class of the module {name}, which is not loaded here: import it at the top of the function's file"
        )

    def _in_a_root(self, name: str) -> bool:
        parts = name.split(".")
        places = [root.joinpath(*parts) for root in self._roots]
        return any(place.with_suffix(".py").is_file() or (place / "__init__.py").is_file() for place in places)

    # --- enums, named tuples, texts -----------------------------------------------------------------------------------

    def enum_parts(self, value: enum.Enum) -> list[Any]:
        # Several flags at once have no name of their own.
        return [*self.name(type(value)), value.value if isinstance(value, enum.Flag) else value.name]

    def enum_of(self, data: list[Any]) -> enum.Enum:
        cls = self.find(data[0], data[1])
        if not issubclass(cls, enum.Enum):
            raise CannotTravel(f"says that {data[1]} is an enum, which it is not")
        if issubclass(cls, enum.Flag):
            return cls(data[2])
        if data[2] not in cls.__members__:
            raise CannotTravel(f"holds {data[1]}.{data[2]}, which that enum does not have")
        return cls.__members__[data[2]]

    def named_tuple(self, value: Any) -> list[Any] | None:
        return [*self.name(type(value)), list(value)] if _is_named_tuple(type(value)) else None

    def named_tuple_of(self, data: list[Any]) -> Any:
        cls = self.find(data[0], data[1])
        if not _is_named_tuple(cls):
            raise CannotTravel(f"says that {data[1]} is a named tuple, which it is not")
        return tuple.__new__(cls, data[2])

    def text(self, value: Any) -> list[str] | None:
        cls = type(value)
        say = _TEXTS.get((cls.__module__, cls.__qualname__))
        if say is None and cls.__module__ == "pydantic.networks" and hasattr(value, "unicode_string"):
            say = str
        return [*self.name(cls), say(value)] if say is not None else None

    def text_of(self, data: list[Any]) -> Any:
        cls = self.find(data[0], data[1])
        if (data[0], data[1]) not in _TEXTS and not (data[0] == "pydantic.networks" and hasattr(cls, "unicode_string")):
            raise CannotTravel(f"says that {data[1]} is made of a text, which it is not")
        return cls(data[2])

    # --- dataclasses --------------------------------------------------------------------------------------------------

    def dataclass(self, value: Any) -> list[Any] | None:
        cls = type(value)
        if not dataclasses.is_dataclass(cls):
            return None
        # In __slots__ or in the object's own dictionary, where __post_init__ may have put more than the fields.
        named = {field.name for field in dataclasses.fields(cls)}
        state = {name: getattr(value, name) for name in named if hasattr(value, name)}
        return [*self.name(cls), {**state, **getattr(value, "__dict__", {})}]

    def dataclass_of(self, data: list[Any]) -> Any:
        cls = self.find(data[0], data[1])
        if not dataclasses.is_dataclass(cls):
            raise CannotTravel(f"says that {data[1]} is a dataclass, which it is not")
        value = object.__new__(cls)
        for name, item in _attributes(data[2]).items():
            object.__setattr__(value, name, item)
        return value

    # --- pydantic -----------------------------------------------------------------------------------------------------

    def model(self, value: Any) -> list[Any] | None:
        pydantic = sys.modules.get("pydantic")
        if pydantic is None or not isinstance(value, pydantic.BaseModel):
            return None
        private = value.__pydantic_private__
        if private is not None:
            undefined = sys.modules["pydantic_core"].PydanticUndefined
            private = {name: item for name, item in private.items() if item is not undefined}
        fields_set = sorted(value.__pydantic_fields_set__)
        return [*self.name(type(value)), dict(value.__dict__), value.__pydantic_extra__, fields_set, private]

    def model_of(self, data: list[Any]) -> Any:
        from pydantic import BaseModel

        cls = self.find(data[0], data[1])
        if not issubclass(cls, BaseModel):
            raise CannotTravel(f"says that {data[1]} is a pydantic model, which it is not")
        value = cls.__new__(cls)
        state = {
            "__dict__": _attributes(data[2]),
            "__pydantic_extra__": data[3],
            "__pydantic_fields_set__": set(data[4]),
            "__pydantic_private__": data[5],
        }
        BaseModel.__setstate__(value, state)
        return value

    # --- exceptions ---------------------------------------------------------------------------------------------------

    def exception(self, error: BaseException, can_encode: Callable[[Any], bool]) -> list[Any]:
        """Its class, arguments and attributes as far as they can travel, and its text."""
        # Python's own exceptions keep some of both elsewhere: the file's name of an OSError, say.
        _, arguments, *rest = _native(type(error), "__reduce__")(error)
        if not all(can_encode(argument) for argument in arguments):
            arguments = [text_of(error)]
        known = (rest and rest[0]) or {}
        state = {name: item for name, item in known.items() if name.isidentifier() and can_encode(item)}
        state.pop("__notes__", None)
        return [*self.name(type(error)), list(arguments), state]

    def exception_of(self, data: list[Any]) -> BaseException:
        cls = self.find(data[0], data[1])
        if not issubclass(cls, BaseException):
            raise CannotTravel(f"says that {data[1]} is an exception, which it is not")
        # The class's own constructor may want anything; what Python itself brings takes the arguments as they are.
        error: BaseException = _native(cls, "__new__")(cls, *data[2])
        _native(cls, "__init__")(error, *data[2])
        for name, item in _attributes(data[3]).items():
            try:
                setattr(error, name, item)
            except Exception:  # noqa: BLE001 - a property of user code; the rest is worth having
                continue
        return error


def text_of(error: BaseException) -> str:
    """What an exception says; user code need not make that possible."""
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - user code
        return ""


def _native(cls: type, method: str) -> Any:
    for base in cls.__mro__:
        found = vars(base).get(method)
        if found is not None and not isinstance(getattr(found, "__func__", found), FunctionType):
            return getattr(base, method)
    raise CannotTravel(f"is of the class {cls.__qualname__}, which cannot be made")


def _is_named_tuple(cls: type) -> bool:
    return issubclass(cls, tuple) and hasattr(cls, "_fields")


def _attributes(state: Any) -> dict[str, Any]:
    """The attributes that data may set: by name, and none of those by which Python works."""
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise CannotTravel("is no object's data")
    for name in state:
        if name.startswith("__") and name.endswith("__"):
            raise CannotTravel(f"sets {name}, which data may not")
    return state
