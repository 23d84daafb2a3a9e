"""Where callers ask to store a file: tokens for the file server, and signed URLs to send the bytes to.

Leaves the bytes themselves to ``uploads``, on the host that the answers name.
"""

from __future__ import annotations

import time
import uuid
from typing import Any
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from . import wire
from .control import Control, answer, head_of
from .errors import bad_request
from .lifecycle import lifecycle
from .tokens import Tokens

#: Seconds.
TOKEN_LIFE = 3600
SIGNED_LIFE = 3600
#: A token for files is good for so much longer than it says: clients keep it until their own clock says that it ended.
LATE_CLOCKS = 600
_LONGEST_NAME = 255
_USUAL_TYPE = "application/octet-stream"


class Storage:
    """Routes below ``/rest/storage``."""

    def __init__(self, control: Control, tokens: Tokens) -> None:
        self._control = control
        self._tokens = tokens

    def routes(self) -> list[Route]:
        return [
            Route("/rest/storage/auth/token", self.token, methods=["POST"]),
            Route("/rest/storage/upload/initiate", self.initiate, methods=["POST"]),
            Route("/rest/storage/upload/initiate-multipart", self.initiate_parts, methods=["POST"]),
        ]

    async def token(self, request: Request) -> Response:
        """A token for the file server, for at least as long as its answer says."""
        key = await self._control.caller(request, "call", "manage")
        token = self._tokens.issue("files", TOKEN_LIFE + LATE_CLOCKS, sub=key.key_id)
        return answer(
            {
                "token": token,
                "token_type": "Bearer",
                "base_url": self._cdn(request),
                "expires_at": wire.iso(time.time() + TOKEN_LIFE),
            }
        )

    async def initiate(self, request: Request) -> Response:
        """A URL to PUT one file to, and the URL that it will have."""
        name, content_type = await self._named(request)
        key = await self._control.caller(request, "call", "manage")
        kept = lifecycle(head_of(request), key.owner)
        file_id = new_file_id()
        signature = self._tokens.issue(
            "upload",
            SIGNED_LIFE,
            method="PUT",
            id=file_id,
            type=content_type,
            max=self._control.settings.max_file_bytes,
            name=name,
            owner=kept.owner,
            expires_in=kept.expires_in,
            default=kept.default,
            decisions=kept.decisions,
        )
        return self._answer(request, file_id, file_id, name, signature)

    async def initiate_parts(self, request: Request) -> Response:
        """A URL to PUT the parts of one file below, and the URL that it will have."""
        name, content_type = await self._named(request)
        key = await self._control.caller(request, "call", "manage")
        kept = lifecycle(head_of(request), key.owner)
        upload = self._control.store.uploads.begin(new_file_id(), name, content_type, kept)
        signature = self._tokens.issue(
            "upload",
            SIGNED_LIFE,
            method="PARTS",
            id=upload.upload_id,
            type=content_type,
            max=self._control.settings.max_file_bytes,
        )
        return self._answer(request, upload.upload_id, upload.file_id, name, signature)

    async def _named(self, request: Request) -> tuple[str, str]:
        await self._control.caller(request, "call", "manage")
        body = await self._control.json(request)
        return file_name(body.get("file_name")), content_type_of(body.get("content_type"))

    def _answer(self, request: Request, upload_id: str, file_id: str, name: str, signature: str) -> Response:
        cdn = self._cdn(request)
        return answer(
            {"upload_url": f"{cdn}/uploads/{upload_id}?signature={signature}", "file_url": file_url(cdn, file_id, name)}
        )

    def _cdn(self, request: Request) -> str:
        return self._control.addresses.files_url(request.scope, head_of(request)) + "/cdn"


def new_file_id() -> str:
    """Unguessable: whoever knows it may fetch the file."""
    return uuid.uuid4().hex


def file_url(cdn: str, file_id: str, name: str) -> str:
    """Where a stored file is fetched."""
    return f"{cdn}/files/{file_id}/{quote(name, safe='')}"


def file_name(given: Any) -> str:
    """What a caller calls a file; it is never a path here."""
    if given is None or given == "":
        return "upload.bin"
    if not isinstance(given, str):
        raise bad_request('"file_name" must be text.')
    return given.replace("\\", "/").rpartition("/")[2][-_LONGEST_NAME:] or "upload.bin"


def content_type_of(given: Any) -> str:
    """The type that a caller names; files are served as download when it is no harmless one."""
    if given is None or given == "":
        return _USUAL_TYPE
    if not isinstance(given, str) or len(given) > 200:
        raise bad_request('"content_type" must be text of at most 200 characters.')
    return given
