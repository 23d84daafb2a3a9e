"""Every message between the supervisor and a runner: tagged dataclasses, framed msgpack on one inherited socketpair.

A frame is a 4-byte big-endian length and one msgpack map ``{"t": tag, ...fields}``. New fields must have defaults, so
that a newer side can talk to an older one. Nothing here does I/O; both sides bring their own reading and writing.
Standard library and msgpack only.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import msgpack

PROTOCOL_VERSION = 1
#: Largest frame that either side accepts, in bytes. Bodies are bounded by the gateway's own limit, which is lower.
MAX_FRAME_BYTES = 256 * 1024 * 1024
#: Messages of a connection that either side sends before the other has said that it took them: no more than so many,
#: and nothing beyond so many bytes; the last one may pass that mark.
WINDOW_MESSAGES = 64
WINDOW_BYTES = 1024 * 1024
#: Largest message of a connection that an app may send, in bytes. The gateway bounds those of callers.
MAX_MESSAGE_BYTES = 16 * 1024 * 1024
_LENGTH = struct.Struct(">I")

Headers = list[tuple[bytes, bytes]]


class ProtocolError(Exception):
    """The other side sent a frame that cannot be read."""


class Window:
    """The messages of a connection that were sent in one direction and not taken yet."""

    __slots__ = ("_bytes", "_sizes")

    def __init__(self) -> None:
        self._sizes: deque[int] = deque()
        self._bytes = 0

    @property
    def open(self) -> bool:
        """Whether another message may be sent."""
        return len(self._sizes) < WINDOW_MESSAGES and self._bytes < WINDOW_BYTES

    def sent(self, data: str | bytes) -> None:
        """One more is on its way."""
        self._sizes.append(len(data))
        self._bytes += len(data)

    def taken(self, messages: int) -> None:
        """The other side has taken so many of the oldest."""
        for _ in range(min(messages, len(self._sizes))):
            self._bytes -= self._sizes.popleft()


@dataclass(slots=True)
class Message:
    """Base of all messages; ``tag`` names the kind on the wire."""

    tag: ClassVar[str] = ""


# --- supervisor to runner ---------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Start(Message):
    """First message: what to load. ``bundle_dir`` is also the runner's working directory.

    ``files_dir``: folder in which the runner leaves files for the platform's store (see FileSaved).
    ``cpu_fallback_for``: name of the GPU type that this CPU stands in for, or None.
    ``storage_hosts``: host[:port] values of the platform itself, which downloads may reach though they are private.
    ``for_calls``, ``setup_function``, ``exposed_port``: as ``AppSpec``.
    ``secrets``: variables for the app's environment. Not part of the process's own: that one others can read.
    """

    tag: ClassVar[str] = "start"
    app: str
    entry_file: str
    class_name: str
    bundle_dir: str
    files_dir: str
    revision: str
    worker_id: str
    machine_type: str
    max_multiplexing: int = 1
    cpu_fallback_for: str | None = None
    storage_hosts: list[str] = field(default_factory=list)
    secrets: dict[str, str] = field(default_factory=dict, repr=False)
    for_calls: bool = False
    setup_function: str = ""
    exposed_port: int = 0
    protocol_version: int = PROTOCOL_VERSION


@dataclass(slots=True)
class Request(Message):
    """One HTTP request for the app. ``base_url`` is the public URL of the platform as this caller sees it.

    With the method ``fal._spec.WEBSOCKET`` it is a connection, and Socket messages go both ways until its Response.
    """

    tag: ClassVar[str] = "request"
    id: str
    attempt: int
    method: str
    path: str
    query: bytes
    headers: Headers
    body: bytes
    base_url: str
    stream: bool = True


@dataclass(slots=True)
class Cancel(Message):
    """The request was cancelled or its caller hung up; whatever it still answers is thrown away."""

    tag: ClassVar[str] = "cancel"
    id: str


@dataclass(slots=True)
class Credit(Message):
    """The platform can take ``chunks`` more ResponseChunk messages of request ``id`` (back-pressure of streams), or has
    taken so many of a connection's messages."""

    tag: ClassVar[str] = "credit"
    id: str
    chunks: int


@dataclass(slots=True)
class Ping(Message):
    """Answered by Pong from the runner's I/O thread: silence means a held GIL or a stopped process."""

    tag: ClassVar[str] = "ping"
    n: int


@dataclass(slots=True)
class ValueReply(Message):
    """Answer to the ValueCall of the same number; ``error`` when it was refused or failed."""

    tag: ClassVar[str] = "value_reply"
    n: int
    value: str | None = None
    error: str | None = None


# --- runner to supervisor ---------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Hello(Message):
    """Sent at once, before user code is touched. ``start_kind``: ``spawn``, or ``zygote`` for a forked process."""

    tag: ClassVar[str] = "hello"
    protocol_version: int
    python: str
    pid: int
    start_kind: str = "spawn"


@dataclass(slots=True)
class Stage(Message):
    """A finished stage of the start: ``name`` is ``boot``, ``import`` or ``setup``; ``seconds`` is its own length."""

    tag: ClassVar[str] = "stage"
    name: str
    seconds: float


@dataclass(slots=True)
class Ready(Message):
    """``setup()`` has finished; requests may come. ``openapi`` is the app's document as JSON text."""

    tag: ClassVar[str] = "ready"
    openapi: str
    endpoints: list[str]
    device: str = "cpu"


@dataclass(slots=True)
class Learned(Message):
    """Sent once, after Ready: what would make the app's next start quicker.

    ``modules``: those of the environment that are loaded by now, in the order of their import, up to the moment at
    which the app's own code set an environment variable: later ones may have read it.
    ``files``: those that Python code opened below the folders where apps keep their models.
    """

    tag: ClassVar[str] = "learned"
    modules: list[str]
    files: list[str]


@dataclass(slots=True)
class StartFailed(Message):
    """The start failed; the runner exits with code 3 after this. ``stage``: ``import``, ``setup`` or ``web server``."""

    tag: ClassVar[str] = "start_failed"
    stage: str
    error: str
    traceback: str


@dataclass(slots=True)
class Response(Message):
    """A whole answer in one message: the usual case."""

    tag: ClassVar[str] = "response"
    id: str
    attempt: int
    status: int
    headers: Headers
    body: bytes


@dataclass(slots=True)
class ResponseStart(Message):
    """Start of a streamed answer; chunks and one ResponseEnd follow."""

    tag: ClassVar[str] = "response_start"
    id: str
    attempt: int
    status: int
    headers: Headers


@dataclass(slots=True)
class ResponseChunk(Message):
    """A piece of a streamed answer."""

    tag: ClassVar[str] = "response_chunk"
    id: str
    attempt: int
    body: bytes


@dataclass(slots=True)
class ResponseEnd(Message):
    """End of a streamed answer; ``error`` when the app failed in the middle."""

    tag: ClassVar[str] = "response_end"
    id: str
    attempt: int
    error: str | None = None


@dataclass(slots=True)
class SocketAccept(Message):
    """The app opened the connection. It ends, as every request, with one Response: 101 when the app ended it well."""

    tag: ClassVar[str] = "socket_accept"
    id: str
    attempt: int
    subprotocol: str | None
    headers: Headers


@dataclass(slots=True)
class SocketTaken(Message):
    """The app has taken so many of the caller's messages."""

    tag: ClassVar[str] = "socket_taken"
    id: str
    attempt: int
    messages: int


# --- both ways, on connections ----------------------------------------------------------------------------------------


@dataclass(slots=True)
class SocketMessage(Message):
    """One message: text or bytes."""

    tag: ClassVar[str] = "socket_message"
    id: str
    attempt: int
    data: str | bytes


@dataclass(slots=True)
class SocketClose(Message):
    """No more messages come from this side. To the runner: the caller has left, or the platform ended it."""

    tag: ClassVar[str] = "socket_close"
    id: str
    attempt: int
    code: int
    reason: str = ""


# --- runner to supervisor, continued ----------------------------------------------------------------------------------


@dataclass(slots=True)
class GpuFault(Message):
    """The GPU failed under an attempt. Sent ahead of its answer where possible.

    ``kind``: ``out_of_memory``; ``sticky``: this process can do nothing more on its GPU; ``broken_card``: the same, and
    the card is to blame. ``error``: one line.
    """

    tag: ClassVar[str] = "gpu_fault"
    id: str
    attempt: int
    kind: str
    error: str


@dataclass(slots=True)
class Log(Message):
    """A line the app printed or logged. ``level``: STDOUT, STDERR, DEBUG, INFO, WARN, ERROR. ``at``: unix seconds."""

    tag: ClassVar[str] = "log"
    level: str
    message: str
    at: float
    request_id: str | None = None


@dataclass(slots=True)
class FileSaved(Message):
    """The runner left ``files_dir/file_id``; the supervisor stores it before it forwards anything that follows.

    Its public URL is ``{base_url}/cdn/files/{file_id}/{name}``, known to the runner without waiting for an answer.
    ``lifecycle``: what the caller's header says of files, for ``caller``, who may always fetch them.
    """

    tag: ClassVar[str] = "file_saved"
    file_id: str
    name: str
    content_type: str
    request_id: str | None = None
    lifecycle: str | None = None
    caller: str | None = None


@dataclass(slots=True)
class ValueCall(Message):
    """``get``, ``set`` or ``delete`` a value that the owner's apps share; answered by one ValueReply."""

    tag: ClassVar[str] = "value_call"
    n: int
    verb: str
    database: str
    key: str
    value: str | None = None
    ttl_seconds: int | None = None


@dataclass(slots=True)
class Pong(Message):
    """Answer to Ping."""

    tag: ClassVar[str] = "pong"
    n: int


_ALL: tuple[type[Message], ...] = (
    Start, Request, Cancel, Credit, Ping, ValueReply,
    Hello, Stage, Ready, Learned, StartFailed, Response, ResponseStart, ResponseChunk, ResponseEnd, GpuFault, Log,
    FileSaved, ValueCall, Pong, SocketAccept, SocketTaken, SocketMessage, SocketClose,
)  # fmt: skip
_BY_TAG: dict[str, type[Message]] = {cls.tag: cls for cls in _ALL}
_FIELDS: dict[type[Message], tuple[str, ...]] = {cls: tuple(f.name for f in fields(cls)) for cls in _ALL}


def encode(message: Message) -> bytes:
    """One whole frame, length included."""
    cls = type(message)
    content = {"t": cls.tag, **{name: getattr(message, name) for name in _FIELDS[cls]}}
    try:
        body: bytes = msgpack.packb(content)
    except UnicodeEncodeError:  # a lone surrogate: JSON may hold one, and user code may print what a caller sent
        body = msgpack.packb(content, unicode_errors="replace")
    if len(body) > MAX_FRAME_BYTES:
        raise ProtocolError(f"a {cls.tag} frame of {len(body)} bytes is over the limit of {MAX_FRAME_BYTES}")
    return _LENGTH.pack(len(body)) + body


def decode(body: bytes | bytearray | memoryview) -> Message:
    """The message in a frame's body. Unknown fields are ignored, so that an older side reads a newer one.

    Raises:
        ProtocolError: not msgpack, an unknown tag or a missing field.
    """
    try:
        raw: Any = msgpack.unpackb(body, strict_map_key=True)
        cls = _BY_TAG[raw.pop("t")]
        known = _FIELDS[cls]
        if "headers" in raw:
            raw["headers"] = [(bytes(k), bytes(v)) for k, v in raw["headers"]]
        return cls(**{name: raw[name] for name in known if name in raw})
    except ProtocolError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, msgpack.exceptions.UnpackException) as error:
        raise ProtocolError(f"unreadable frame of {len(body)} bytes: {error!r}") from error


class FrameBuffer:
    """Collects received bytes and gives out whole messages."""

    __slots__ = ("_data",)

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> Iterator[Message]:
        """Add ``data`` and yield each message that is now whole.

        Raises:
            ProtocolError: a length over the limit or an unreadable frame; the connection is then useless.
        """
        buffer = self._data
        buffer += data
        while len(buffer) >= 4:
            (length,) = _LENGTH.unpack_from(buffer)
            if length > MAX_FRAME_BYTES:
                raise ProtocolError(f"a frame announces {length} bytes; the limit is {MAX_FRAME_BYTES}")
            if len(buffer) < 4 + length:
                return
            body = bytes(buffer[4 : 4 + length])
            del buffer[: 4 + length]
            yield decode(body)
