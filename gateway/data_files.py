"""``fal files``: what lies in the folder that apps see as ``/data``, listed, fetched, put there, renamed and deleted.

All apps share the folder, and so does every key. Leaves the way through it to the store.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, BinaryIO, TypeVar

from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from scheduler.store import DataFolder, Lifecycle, NotFound
from scheduler.store.uploads import MOST_PARTS, Incoming, Upload

from . import wire
from .control import Control, answer, head_of
from .errors import Refusal, bad_request
from .fetching import Fetching
from .webhook_target import MAX_URL_LENGTH

T = TypeVar("T")

#: Marks uploads in parts that end here, not in the file store.
_DATA = "data-folder"
_BLOCK = 256 * 1024
_NO_FORM = 'The body must be a form with a file called "file_upload".'


class DataFiles:
    """Routes below ``/rest/files``."""

    def __init__(self, control: Control) -> None:
        self._control = control
        settings = control.settings
        self._data = DataFolder(settings.app_data or settings.data_dir / "data")
        self._uploads = control.store.uploads
        self._fetching = Fetching(settings.max_file_bytes, settings.allow_private_webhooks)

    def routes(self) -> list[Route]:
        parts = "/rest/files/file/multipart/{path:path}"
        return [
            Route("/rest/files/list/{path:path}", self.list, methods=["GET"]),
            Route("/rest/files/file/local/{path:path}", self.put, methods=["POST"]),
            Route("/rest/files/file/url/{path:path}", self.put_from_url, methods=["POST"]),
            Route(f"{parts}/initiate", self.begin, methods=["POST"]),
            Route(f"{parts}/{{upload_id}}/complete", self.complete, methods=["POST"]),
            Route(f"{parts}/{{upload_id}}/cancel", self.cancel, methods=["POST"]),
            Route(f"{parts}/{{upload_id}}/{{number:int}}", self.part, methods=["PUT"]),
            Route("/rest/files/file/{path:path}", self.get, methods=["GET"]),
            Route("/rest/files/file/{path:path}", self.delete, methods=["DELETE"]),
            Route("/rest/files/rename/{path:path}", self.rename, methods=["POST"]),
        ]

    async def list(self, request: Request) -> Response:
        """What a folder holds; nothing when it is not there, for the command looks before it uploads into it."""
        try:
            entries = await self._do(request, self._data.entries, _path(request))
        except NotFound:
            entries = []
        return answer(
            [
                {
                    "path": entry.path,
                    "name": entry.path.rpartition("/")[2],
                    "size": entry.size,
                    "is_file": entry.is_file,
                    "updated_time": wire.iso(entry.changed_at),
                }
                for entry in entries
            ]
        )

    async def get(self, request: Request) -> Response:
        """The bytes of a file, as a download whatever they are."""
        file, size = await self._do(request, self._data.open, _path(request))
        headers = {
            "content-length": str(size),
            "content-disposition": "attachment",
            "x-content-type-options": "nosniff",
            "cache-control": "private, no-store",
        }
        return StreamingResponse(_blocks(file, size), headers=headers, media_type="application/octet-stream")

    async def put(self, request: Request) -> Response:
        """A file in one form; larger ones come in parts."""
        await self._control.caller(request)
        data = await self._form_file(request)
        with self._uploads.receiving(len(data)) as incoming:
            await asyncio.to_thread(_fill, incoming, data)
            await self._do(request, self._data.take, incoming.path, _path(request))
        return answer({"path": _path(request), "size": len(data)})

    async def put_from_url(self, request: Request) -> Response:
        """A file that the platform fetches itself."""
        await self._do(request, self._data.check, _path(request))  # before anything is fetched for nothing
        url = (await self._control.json(request)).get("url")
        if not isinstance(url, str) or not 1 <= len(url) <= MAX_URL_LENGTH or not url.isprintable():
            raise bad_request(f'"url" must be an http(s) address of at most {MAX_URL_LENGTH} characters.')
        with self._uploads.receiving(0) as incoming:
            await self._fetching.fetch(url, incoming)
            await self._do(request, self._data.take, incoming.path, _path(request))
        return answer({"path": _path(request), "size": incoming.size})

    async def delete(self, request: Request) -> Response:
        """A file, or a folder with all that is in it."""
        await self._do(request, self._data.delete, _path(request))
        return answer({})

    async def rename(self, request: Request) -> Response:
        """Another place for a file or folder."""
        await self._control.caller(request)
        destination = (await self._control.json(request)).get("destination")
        if not isinstance(destination, str):
            raise bad_request('"destination" must be a path such as "/data/there".')
        await self._do(request, self._data.rename, _path(request), destination)
        return answer({})

    async def begin(self, request: Request) -> Response:
        """A file in parts."""
        owner = (await self._control.caller(request)).owner
        kept = Lifecycle(owner=owner)
        upload = await asyncio.to_thread(self._uploads.begin, _DATA, _path(request), "", kept)
        return answer({"upload_id": upload.upload_id})

    async def part(self, request: Request) -> Response:
        """One part, in a form."""
        upload, number = await self._upload(request), request.path_params["number"]
        if not 1 <= number <= MOST_PARTS:
            raise bad_request(f"Part {number} is out of range; parts have numbers from 1 to {MOST_PARTS}.")
        data = await self._form_file(request)
        with self._uploads.receiving(len(data)) as incoming:
            await asyncio.to_thread(incoming.write, data)
            tag = await asyncio.to_thread(self._uploads.keep_part, upload, number, incoming)
        return answer({"part_number": number, "etag": tag})

    async def complete(self, request: Request) -> Response:
        """All parts are here."""
        upload = await self._upload(request)
        parts = (await self._control.json(request)).get("parts")
        try:
            tags = [(int(part["part_number"]), str(part["etag"])) for part in parts or []]
        except (KeyError, TypeError, ValueError):
            raise bad_request('The body must be {"parts": [{"part_number": 1, "etag": "…"}, …]}.') from None
        whole = await self._do(request, self._uploads.assemble, upload, tags)
        await self._do(request, self._data.take, whole, upload.name)
        await asyncio.to_thread(self._uploads.finish, upload)
        return answer({"etag": ""})

    async def cancel(self, request: Request) -> Response:
        """The parts are not wanted any more."""
        await asyncio.to_thread(self._uploads.finish, await self._upload(request))
        return answer({})

    async def _upload(self, request: Request) -> Upload:
        owner = (await self._control.caller(request)).owner
        upload = await asyncio.to_thread(self._uploads.get, request.path_params["upload_id"])
        mine = upload is not None and (upload.file_id, upload.lifecycle.owner) == (_DATA, owner)
        if upload is None or not mine or upload.name != _path(request):
            raise Refusal(404, "There is no such upload; it may have been given up a day after it began.")
        return upload

    async def _form_file(self, request: Request) -> bytes:
        """The one file of a form, which is held in memory: the command sends at most 10 MB at once."""
        body = await self._control.limits.read_body(request.receive, head_of(request).content_length)

        if not _is_whole_form(request.headers.get("content-type", ""), body):
            raise bad_request(_NO_FORM)

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async with Request(request.scope, receive).form(max_files=1, max_fields=1) as form:
            file = form.get("file_upload")
            if not isinstance(file, UploadFile):
                raise bad_request(_NO_FORM)
            return await file.read()

    async def _do(self, request: Request, act: Callable[..., T], *arguments: Any) -> T:
        await self._control.caller(request)
        try:
            return await asyncio.to_thread(act, *arguments)
        except ValueError as error:
            raise bad_request(f"{error}.") from None


def _path(request: Request) -> str:
    """The path that the caller means; it puts a whole one behind the route's last slash."""
    return "/" + str(request.path_params["path"]).strip("/")


def _is_whole_form(content_type: str, body: bytes) -> bool:
    """Whether a form in parts has its end. The parser does not ask, and leaves the file of a half one open."""
    boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
    return bool(boundary) and body.rstrip(b"\r\n").endswith(b"\r\n--" + boundary + b"--")


def _fill(incoming: Incoming, data: bytes) -> None:
    incoming.write(data)
    incoming.close(whole=True)


async def _blocks(file: BinaryIO, size: int) -> AsyncIterator[bytes]:
    with file:
        while size > 0 and (block := await asyncio.to_thread(file.read, min(_BLOCK, size))):
            size -= len(block)
            yield block
