"""Files that go to the bucket of the caller who asked for it, by its own signed policy (see ``fal._upload_policy``).

Nothing falls back to the platform: who names a bucket must not find the output anywhere else. The file is there when
its URL is known, so that the answer never names what could not be stored.
"""

from __future__ import annotations

import http.client
import io
import re
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

from fal._context import current_request
from fal._upload_policy import HEADER, UploadPolicy, UploadPolicyInputError, running_policies
from fal.exceptions import AppException
from fal.toolkit._fetching import PinnedTLS, checked_address
from fal.toolkit.exceptions import DownloadError, FileUploadException
from fal.toolkit.file.types import FileData, FileRepository, PendingFile

#: The most that S3 takes in one POST.
MOST_BYTES = 5 * 1024**3
_ATTEMPTS = 4
#: Seconds that connecting, or one piece on the wire, may take.
_TIMEOUT = 30.0
#: A file may take so many seconds in all, and one more for each MiB: the caller's bucket holds up the caller's own
#: request, but a slow one must not keep a runner for good.
_WHOLE_SECONDS = 60.0
_PIECE = 256 * 1024
_UNFIT = re.compile(r'[\x00-\x1f\x7f"\\/]')
_CODE = re.compile(rb"<Code>([A-Za-z0-9]{1,64})</Code>")


class UploadPolicyError(FileUploadException, AppException):
    """The caller's bucket did not take the file: 424, for the fault is with what the caller named."""

    def __init__(self, what: str) -> None:
        AppException.__init__(self, message=f"The upload by {HEADER} failed: {what}", status_code=424)
        self.args = (self.message,)


def asked_for() -> UploadPolicy | None:
    """The policy of the request that is being answered, if it has one.

    A thread of the app's own does not know for which request it works. What it saves belongs to the one that runs.

    Raises:
        UploadPolicyInputError: it has one that is none; or it is not known which of several requests this is for, and
            one of them has a policy.
    """
    request = current_request()
    if request is not None:
        return request.upload_policy
    running = running_policies()
    if len(running) > 1 and any(running):
        raise UploadPolicyInputError(
            "this file is saved in a thread that belongs to no request, while several run: start it with "
            "contextvars.copy_context().run, or asyncio.to_thread."
        )
    return running[0] if running else None


class PolicyRepository(FileRepository):
    """A caller's bucket."""

    def __init__(self, policy: UploadPolicy) -> None:
        self._policy = policy

    def save(self, data: FileData, **options: object) -> str:
        """Post the bytes.

        Raises:
            UploadPolicyError: they were not taken. UploadPolicyInputError: there are too many for one POST.
        """
        return self._send(data.data, data.file_name or "file", data.content_type or "")

    def save_file(
        self, file_path: str | Path, content_type: str, multipart: bool | None = None, **options: object
    ) -> str:
        """Post a file without reading it into memory."""
        path = Path(file_path)
        return self._send(path, path.name, content_type)

    def reserve(self, content_type: str, file_name: str, **options: object) -> PendingFile:
        """The URL that ``complete`` will fill."""
        name = _own_name(file_name)
        url, _ = self._policy.place(name)
        return PendingFile(url, content_type, file_name, lambda source: self._post(source, name, content_type))

    def _send(self, source: bytes | Path, file_name: str, content_type: str) -> str:
        name = _own_name(file_name)
        self._post(source, name, content_type)
        return self._policy.place(name)[0]

    def _post(self, source: bytes | Path, name: str, content_type: str) -> None:
        size = source.stat().st_size if isinstance(source, Path) else len(source)
        if size > MOST_BYTES:
            raise UploadPolicyInputError(f"{name} has {size} bytes, and one POST takes {MOST_BYTES} at most.")
        form = _Form(self._policy.place(name)[1], name, content_type, source, size)
        until = time.monotonic() + _WHOLE_SECONDS + size / 2**20
        for attempt in range(1, _ATTEMPTS + 1):
            failure, again = _try(self._policy.url, form, until)
            if failure is None:
                return
            pause = 0.5 * 2**attempt
            if not again or attempt == _ATTEMPTS or time.monotonic() + pause >= until:
                raise UploadPolicyError(f"{urlsplit(self._policy.url).hostname} {failure}.")
            time.sleep(pause)


class _Form:
    """A multipart form with the file last, as S3 wants it; can be sent again."""

    def __init__(
        self, fields: dict[str, str], file_name: str, content_type: str, source: bytes | Path, size: int
    ) -> None:
        boundary = uuid.uuid4().hex
        if not any(name.strip().lower() == "content-type" for name in fields):
            fields = {**fields, "Content-Type": _one_line(content_type)}
        parts = [
            f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
            for name, value in fields.items()
        ]
        parts.append(
            f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{file_name}"\r\n'
            f"Content-Type: {_one_line(content_type)}\r\n\r\n"
        )
        self._head = "".join(parts).encode()
        self._tail = f"\r\n--{boundary}--\r\n".encode()
        self._source = source
        self._size = size
        self.headers = {
            "Content-Type": f"multipart/form-data; boundary={boundary}",
            "Content-Length": str(len(self._head) + size + len(self._tail)),
            "User-Agent": "fal-toolkit",
        }

    def body(self) -> Iterator[bytes]:
        """All of it; a file that has grown since is sent as far as was announced."""
        yield self._head
        with ExitStack() as stack:
            opened: BinaryIO = (
                stack.enter_context(self._source.open("rb"))
                if isinstance(self._source, Path)
                else io.BytesIO(self._source)
            )
            left = self._size
            while left and (piece := opened.read(min(_PIECE, left))):
                left -= len(piece)
                yield piece
        if left:
            raise OSError(f"the file has become shorter by {left} bytes while it was sent")
        yield self._tail


def _try(url: str, form: _Form, until: float) -> tuple[str | None, bool]:
    """What went wrong, and whether trying again may help. ``until``: monotonic time at which it is cut off."""
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or 443
    try:
        connection = PinnedTLS(host, port, checked_address(host, port, of_platform=False), _TIMEOUT)
    except DownloadError as error:
        return f"cannot be reached: {error}", False
    opened: list[socket.socket] = []
    cutting = threading.Timer(max(0.1, until - time.monotonic()), _cut, (connection, opened))
    cutting.daemon = True
    cutting.start()
    try:
        connection.connect()
        opened.append(connection.sock)
        connection.request("POST", parts.path or "/", body=form.body(), headers=form.headers)
        answer = connection.getresponse()
        said = answer.read(4096)
    except (OSError, http.client.HTTPException) as error:
        if time.monotonic() >= until:
            return "was too slow", False
        return f"broke off: {str(error) or type(error).__name__}", True
    finally:
        cutting.cancel()
        connection.close()
    if time.monotonic() >= until:
        return "was too slow", False  # cut off within its headers, which looks like their end
    # 303: stored, and the policy asks for a redirect to a page that says so.
    if 200 <= answer.status < 300 or answer.status == 303:
        return None, False
    code = _CODE.search(said)
    reason = f" ({code[1].decode()})" if code else ""
    return f"answered {answer.status}{reason}", answer.status >= 500 or answer.status in (408, 429)


def _cut(connection: http.client.HTTPConnection, opened: list[socket.socket]) -> None:
    """Ends a wait for the other side, however slowly it sends. ``opened``: an answer takes its socket along."""
    for each in (*opened, connection.sock):
        if each is not None:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


def _own_name(file_name: str) -> str:
    """A name nobody else has, which ends as the file's does: the caller signed one key for all of a request's files."""
    return f"{uuid.uuid4().hex}-{_UNFIT.sub('_', file_name)[-128:]}"


def _one_line(content_type: str) -> str:
    return "".join(character for character in content_type if character.isprintable())
