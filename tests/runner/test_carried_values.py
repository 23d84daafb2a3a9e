"""What can travel between a caller and a function, and what happens to what cannot."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import ipaddress
import math
import pathlib
import sys
import uuid
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import msgpack
import pydantic
import pytest
from fal._calls import RemoteTraceback, pack_call, pack_error, pack_value, unpack_answer, unpack_call
from fal._carried_classes import Classes
from fal._carried_values import Codec
from fal.exceptions import FalSerializationError, UserFunctionException
from fal.toolkit import File
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image


class Colour(enum.Enum):
    RED = 1
    GREEN = "g"


class Level(enum.StrEnum):
    HIGH = "high"


class Rights(enum.Flag):
    READ = 1
    WRITE = 2


class Point(NamedTuple):
    x: int
    y: Any = None


@dataclasses.dataclass(frozen=True)
class Frozen:
    at: datetime.date
    more: tuple[int, ...] = ()


@dataclasses.dataclass
class Counted:
    items: list[int]
    total: int = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.total = sum(self.items)
        self.seen = {"extra": True}


class Inner(pydantic.BaseModel):
    name: str


class Outer(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")

    inner: Inner
    url: pydantic.HttpUrl
    secret: pydantic.SecretStr
    given: int = 3
    _hidden: set[int] = pydantic.PrivateAttr(default_factory=lambda: {1})

    @pydantic.field_validator("given")
    @classmethod
    def _doubled(cls, value: int) -> int:
        return value * 2


class Refused(ValueError):
    def __init__(self, code: int, *, why: object) -> None:
        super().__init__(f"refused with {code}")
        self.code = code
        self.why = why


OWN = sys.modules[__name__]


@pytest.fixture
def codec() -> Codec:
    return Codec(Classes(OWN, [Path(__file__).parent]))


def there_and_back(codec: Codec, value: Any) -> Any:
    return codec.decode(codec.encode(value, "it"), "it")


def written(value: Any) -> object:
    """What tells a fold, a flag and a nested type apart where `==` does not; a set's order depends on the hash seed."""
    return sorted(map(repr, value)) if isinstance(value, (set, frozenset)) else repr(value)


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        2**200,
        -(2**64),
        1.5,
        math.inf,
        "ä\ud800",
        b"\x00",
        complex(1, -2),
        range(1, 9, 3),
        [1, [2, (3,)]],
        {1, "a", (2, frozenset({3}))},
        {1: "a", (1, 2): {"b": None}, "c": [], None: 1, b"k": 2},
        datetime.datetime(2026, 3, 29, 2, 30, 1, 5),
        datetime.datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin")),
        datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone(datetime.timedelta(hours=5, minutes=30))),
        datetime.date(1, 1, 1),
        datetime.time(23, 59, tzinfo=datetime.UTC),
        datetime.timedelta(days=-1, microseconds=3),
        decimal.Decimal("1.20"),
        uuid.UUID(int=5),
        Path("/data/x"),
        pathlib.PureWindowsPath("c:\\x"),
        Colour.GREEN,
        Level.HIGH,
        Rights.READ | Rights.WRITE,
        Point(1, Point(2)),
        Frozen(datetime.date(2026, 1, 2), (1,)),
        Counted([1, 2]),
        ipaddress.ip_network("10.0.0.0/8"),
        Inner(name="i"),
        Outer.model_validate({"inner": {"name": "x"}, "url": "https://a.test/", "secret": "s", "given": 4, "free": 1}),
        File(url="https://a.test/f", content_type="text/plain", file_name="f", file_size=1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_arrive_as_they_were(codec: Codec, value: Any) -> None:
    found = there_and_back(codec, value)
    assert found == value
    assert type(found) is type(value)
    assert written(found) == written(value)


def test_an_object_gets_its_data_back_without_being_made_again(codec: Codec) -> None:
    """A validator that changes its value, or a __post_init__, would change it once more at each end."""
    given = {"inner": {"name": "x"}, "url": "http://a", "secret": "s", "given": 4}
    found = there_and_back(codec, Outer.model_validate(given))
    assert found.given == 8
    assert found.secret.get_secret_value() == "s"
    assert found._hidden == {1}
    assert found.model_fields_set == {"inner", "url", "secret", "given"}
    counted = Counted([1, 2])
    counted.items.append(3)
    found = there_and_back(codec, counted)
    assert (found.total, found.seen) == (3, {"extra": True})


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary() | st.datetimes(),
    lambda inner: (
        st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text() | st.integers() | st.dates(), inner)
    ),
    max_leaves=20,
)


@given(plain)
def test_any_nesting_of_plain_values_arrives(value: Any) -> None:
    codec = Codec(Classes(OWN, []))
    assert repr(there_and_back(codec, value)) == repr(value)


@given(st.binary(max_size=200))
def test_strange_bytes_are_one_clear_error(data: bytes) -> None:
    codec = Codec(Classes(OWN, []))
    said = ""
    try:
        codec.decode(data, "argument 1 of f()")
    except FalSerializationError as error:
        said = str(error)
    assert not said or said.startswith("argument 1 of f() ")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGB", "RGBA", "CMYK", "I;16", "F", "P"])
def test_pictures_arrive_pixel_by_pixel(codec: Codec, mode: str) -> None:
    picture = Image.linear_gradient("L").resize((5, 3)).convert("RGB").quantize(7) if mode == "P" else None
    picture = picture or Image.new(mode, (5, 3), 1 if mode in ("1", "L", "I;16", "F") else None)
    found = there_and_back(codec, picture)
    assert (found.mode, found.size, found.tobytes()) == (mode, (5, 3), picture.tobytes())
    if mode == "P":
        assert found.convert("RGB").tobytes() == picture.convert("RGB").tobytes()


def test_what_cannot_be_sent_is_named_with_what_can(codec: Codec) -> None:
    class Local(pydantic.BaseModel):
        pass

    def cannot(value: Any) -> str:
        with pytest.raises(TypeError) as refused:
            pack_call(codec, "f", [(None, "x", 1), (None, "lines", value)])
        return str(refused.value)

    assert "argument 'lines' of f() holds a value of type generator, which cannot be sent (send list(value))" in cannot(
        {"a": [], "b": (line for line in "")}
    )
    assert "What can be sent: None, bool, int" in cannot(object())
    assert "define the class at the top level of a file" in cannot(Local())
    assert "send str(value)" in cannot(type("Name", (str,), {})("x"))
    loop: list[Any] = []
    loop.append(loop)
    assert "more than 500 levels deep, or holds itself" in cannot(loop)
    loop.append((loop,))
    assert "holds itself" in cannot((loop,)) or "too deep" in cannot((loop,))


def described(code: int, *content: Any) -> bytes:
    packed: bytes = msgpack.packb(msgpack.ExtType(code, msgpack.packb(list(content))))
    return packed


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (described(33, "subprocess", "Popen", {}, None, [], None), "says that Popen is a pydantic model"),
        (described(32, "builtins", "eval", {}), "does not define"),
        (described(32, "os", "path.join", {}), "does not define"),
        (described(30, "", "Colour.__class__", "x"), "does not define"),
        (described(30, "", "Colour", "BLUE"), "holds Colour.BLUE"),
        (described(35, "builtins", "int", [], {}), "says that int is an exception"),
        (described(34, "subprocess", "Popen", "touch /tmp/owned"), "made of a text, which it is not"),
        (described(31, "", "Frozen", [1]), "says that Frozen is a named tuple"),
        (described(32, "", "Frozen", {"__class__": 1}), "sets __class__, which data may not"),
        (described(32, "antigravity", "Any", {}), "not loaded here"),
        (described(32, "__main__", "Any", {}), "not loaded here"),
        (described(32, "unittest.__main__", "Any", {}), "not loaded here"),
        (described(32, "../etc", "Any", {}), "not loaded here"),
        (described(99, 1), "of kind 99"),
    ],
)
def test_what_arrives_can_name_nothing_but_classes_of_data(codec: Codec, data: bytes, why: str) -> None:
    """Bytes of a call come from the network: none of these may run, import or change anything."""
    with pytest.raises(FalSerializationError, match=why):
        codec.decode(data, "argument 1 of f()")
    assert not {"antigravity", "unittest.__main__"} & set(sys.modules)


def test_a_class_of_a_file_that_was_not_imported_is_found_in_the_functions_folder(tmp_path: Path) -> None:
    (tmp_path / "colours_of_test.py").write_text("import enum\nclass Tone(enum.Enum):\n    LOW = 1\n")
    codec = Codec(Classes(OWN, [tmp_path]))
    sys.path.insert(0, str(tmp_path))
    try:
        found = codec.decode(described(30, "colours_of_test", "Tone", "LOW"), "it")
    finally:
        sys.path.remove(str(tmp_path))
    assert found.value == 1
    del sys.modules["colours_of_test"]


def test_the_functions_own_file_has_another_module_name_on_each_side(codec: Codec) -> None:
    """A script's classes are of ``__main__`` for whoever starts it; on the runner its file is a module."""
    there = ModuleType("app")
    there.Inner = type("Inner", (pydantic.BaseModel,), {"__module__": "app", "__annotations__": {"name": str}})  # type: ignore[attr-defined]
    found = Codec(Classes(there, [])).decode(codec.encode(Inner(name="x"), "it"), "it")
    assert (type(found).__module__, found.name) == ("app", "x")


def raised_again(here: Codec, there: Codec, error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:  # noqa: BLE001 - as the runner does
        body = pack_error(there, caught, caught.__traceback__)
    with pytest.raises(BaseException) as again:
        unpack_answer(here, "f", body)
    return again.value


def test_an_exception_is_raised_again_as_it_was(codec: Codec) -> None:
    found = raised_again(codec, codec, Refused(7, why={1}))
    assert isinstance(found, Refused)
    assert (found.code, found.why, str(found)) == (7, {1}, "refused with 7")
    assert isinstance(found.__cause__, RemoteTraceback)
    assert "raise error" in str(found.__cause__)
    assert str(raised_again(codec, codec, KeyError("k"))) == "'k'"
    missing = raised_again(codec, codec, ImportError("no x", name="x"))
    assert isinstance(missing, ImportError)
    assert missing.name == "x"
    lost = raised_again(codec, codec, FileNotFoundError(2, "No such file", "/x"))
    assert isinstance(lost, FileNotFoundError)
    assert (lost.errno, lost.filename) == (2, "/x")
    group = raised_again(codec, codec, ExceptionGroup("two", [ValueError(1), Refused(2, why=None)]))
    assert isinstance(group, ExceptionGroup)
    assert [repr(each) for each in group.exceptions] == ["ValueError(1)", "Refused('refused with 2')"]


def test_what_of_an_exception_cannot_travel_is_left_behind(codec: Codec) -> None:
    found = raised_again(codec, codec, Refused(7, why=open))
    assert isinstance(found, Refused)
    assert found.code == 7
    assert not hasattr(found, "why")
    assert str(raised_again(codec, codec, ValueError("x", open))) == f"('x', {open!r})"


def test_an_exception_that_cannot_be_raised_here_is_told(codec: Codec) -> None:
    class Local(Exception):
        pass

    found = raised_again(codec, codec, Local("no luck"))
    assert isinstance(found, UserFunctionException)
    assert str(found).endswith("Local: no luck")
    elsewhere = Codec(Classes(ModuleType("other"), []))
    assert isinstance(raised_again(elsewhere, codec, Refused(1, why=1)), UserFunctionException)
    for error in (SystemExit(3), KeyboardInterrupt(), StopIteration(4)):
        found = raised_again(codec, codec, error)
        assert isinstance(found, UserFunctionException)
        assert str(found).startswith(type(error).__name__)


def test_a_call_and_its_value(codec: Codec) -> None:
    body = pack_call(codec, "f", [(None, "a", (1,)), ("b", "b", {2})])
    assert unpack_call(codec, "f", body) == ([(1,)], {"b": {2}})
    assert unpack_answer(codec, "f", pack_value(codec, "f", Point(1))) == Point(1)
    with pytest.raises(FalSerializationError, match=r"the value that f\(\) returns takes 64.0 MiB; at most 64 MiB"):
        pack_value(codec, "f", bytes(64 * 1024 * 1024))
    for strange in (b"", b"{}", msgpack.packb({"version": 2}), msgpack.packb(3)):
        with pytest.raises(FalSerializationError, match=r"the call of f\(\)"):
            unpack_call(codec, "f", strange)
