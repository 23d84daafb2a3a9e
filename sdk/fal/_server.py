"""HTTP client of the control API: bundles, deployments, apps, logs, queues, keys; every refusal becomes a Problem.

Leaves which server to talk to, and starting one, to ``fal._platform``.
"""

from __future__ import annotations

import importlib
import json
import ssl
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx

from fal._config import Target
from fal._needed import needed
from fal._platform import trusted_roots
from fal._problem import Problem

Json = dict[str, Any]

#: Seconds without a byte, keep-alive comments included, after which a stream counts as broken.
STREAM_SILENCE = 30.0


class StreamBroken(Exception):
    """The server stopped sending in the middle of a stream; asking again may go on."""


class ControlApi:
    """One connection pool to one server. Every method raises Problem when the server refuses or does not answer."""

    def __init__(self, target: Target, timeout: float = 60.0) -> None:
        self.target = target
        headers = {"User-Agent": "fal-cli (keepwarm)"}
        if target.key:
            headers["Authorization"] = f"Key {target.key}"
        # A proxy that the environment names cannot reach this machine's own loopback address.
        self._http = httpx.Client(
            base_url=target.url,
            headers=headers,
            timeout=httpx.Timeout(timeout, connect=10.0),
            trust_env=not target.on_loopback or target.url.startswith("https:"),
            verify=trusted_roots(target.url),
        )
        # Programs that use ``fal.api`` do not say when they are done with it. Not at the process' end: what removes a
        # function's app then still needs the connection.
        weakref.finalize(self, self._http.close).atexit = False
        self._owner: str | None = None
        #: The server's clock (unix seconds) at its last answer; None until it has told one.
        self.server_time: float | None = None

    def close(self) -> None:
        self._http.close()

    def request(self, method: str, path: str, *, allow: Sequence[int] = (), **options: Any) -> httpx.Response:
        """One call; an error status that ``allow`` does not list raises Problem."""
        try:
            response = self._http.request(method, path, **options)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        if date := response.headers.get("date"):
            with suppress(ValueError, TypeError):
                self.server_time = parsedate_to_datetime(date).timestamp()
        if response.is_error and response.status_code not in allow:
            raise self.refusal(response)
        return response

    def json(self, method: str, path: str, **options: Any) -> Any:
        """One call whose answer is JSON (None for an empty answer)."""
        response = self.request(method, path, **options)
        if not response.content:
            return None
        try:
            return response.json()
        except ValueError as error:
            raise Problem(
                f"{self.target.url} does not answer like a Keepwarm server.",
                why=f"{method} {path} returned {response.headers.get('content-type', 'no content type')}, not JSON.",
                next_step=f"check the address; it comes from {self.target.source}.",
            ) from error

    def items(self, path: str, **options: Any) -> list[Json]:
        """The entries of a list answer: ``{"items": [...]}``."""
        answer = self.json("GET", path, **options)
        entries = answer.get("items", []) if isinstance(answer, dict) else answer
        return [entry for entry in entries or [] if isinstance(entry, dict)]

    # Who and what

    def owner(self) -> str:
        """The owner that the key belongs to; apps given without an owner are theirs."""
        if self._owner is None:
            self._owner = str(self.json("GET", "/api/v1/whoami")["owner"])
        return self._owner

    def app_id(self, name: str) -> str:
        """``owner/name`` for a name given with or without its owner (a pasted URL's path is understood too)."""
        cleaned = urlsplit(name).path if "://" in name else name
        parts = [part for part in cleaned.split("/") if part]
        if not parts:
            raise Problem(f"{name!r} is not the name of an app.", next_step="see `fal apps list`.")
        return f"{parts[0]}/{parts[1]}" if len(parts) > 1 else f"{self.owner()}/{parts[0]}"

    def app_path(self, name: str, suffix: str = "") -> str:
        """Path of an app's resource in the control API."""
        return f"/api/v1/apps/{quote(self.app_id(name))}{suffix}"

    # Deploying

    def missing(self, hashes: Iterable[str]) -> list[str]:
        """Which of the files (by SHA-256) the server does not have."""
        answer = self.json("POST", "/api/v1/bundles/missing", json={"hashes": sorted(hashes)})
        return [str(sha256) for sha256 in answer["missing"]]

    def upload(self, sha256: str, path: Path, advance: Callable[[int], None]) -> None:
        """Send one file; ``advance`` is called with each number of bytes that went."""
        try:
            size = path.stat().st_size
            with path.open("rb") as stream:
                self.request(
                    "PUT",
                    f"/api/v1/bundles/objects/{sha256}",
                    content=_blocks(stream, advance),
                    headers={"Content-Length": str(size), "Content-Type": "application/octet-stream"},
                    timeout=httpx.Timeout(600.0, connect=10.0),
                )
        except OSError as error:
            raise Problem(f"{path} could not be sent.", why=str(error)) from error
        except Problem as problem:
            problem.what = f"{path} could not be sent. {problem.what}"
            raise

    def deploy(
        self,
        spec: Json,
        files: Sequence[Json],
        *,
        ephemeral: bool,
        message: str | None,
        reset_scale: bool,
        no_cache: bool = False,
        replaces: str | None = None,
        strategy: str = "rolling",
    ) -> Json:
        """Register a revision; its environment is built afterwards (see ``build_events``).

        Args:
            replaces: the ephemeral app (``owner/name``) that this is a later revision of.
        """
        body = {
            "spec": spec,
            "files": list(files),
            "ephemeral": ephemeral,
            "message": message,
            "reset_scale": reset_scale,
            # Only when asked for: an older server refuses what it does not know.
            **({"no_cache": True} if no_cache else {}),
            **({"replaces": replaces} if replaces is not None else {}),
            **({"strategy": strategy} if strategy != "rolling" else {}),
        }
        answer: Json = self.json("POST", "/api/v1/deployments", json=body)
        return answer

    def check_deploy(self, spec: Json, files: Sequence[Json], *, reset_scale: bool) -> Json:
        """What a deploy would change; nothing is sent but names."""
        body = {"spec": spec, "files": list(files), "reset_scale": reset_scale}
        answer: Json = self.json("POST", "/api/v1/deployments/check", json=body)
        return answer

    def build_events(self, app: str, revision: str) -> Iterator[Json]:
        """Log lines of a revision's build, then one ``state`` event."""
        yield from self.events(f"/api/v1/deployments/{quote(app)}/{quote(revision)}/events")

    # Streams

    def events(self, path: str, *, method: str = "GET", **options: Any) -> Iterator[Json]:
        """The JSON events of a server-sent stream until its end.

        Raises:
            StreamBroken: the connection was lost or fell silent.
            Problem: the server refused.
        """
        with self.stream(method, path, **options) as response:
            for data in sse_data(response.iter_lines()):
                try:
                    event = json.loads(data)
                except ValueError:
                    continue  # a keep-alive or a newer kind of event that this version does not know
                if isinstance(event, dict):
                    yield event

    @contextmanager
    def stream(self, method: str, path: str, *, allow: Sequence[int] = (), **options: Any) -> Iterator[httpx.Response]:
        """A streamed answer; refusals are read whole and raised as Problem, but for statuses that ``allow`` lists."""
        timeout = httpx.Timeout(STREAM_SILENCE, connect=10.0)
        try:
            with self._http.stream(method, path, timeout=options.pop("timeout", timeout), **options) as response:
                if response.is_error and response.status_code not in allow:
                    response.read()
                    raise self.refusal(response)
                yield response
        except httpx.ConnectError as error:
            raise self._unreachable(error) from error
        except httpx.RequestError as error:
            raise StreamBroken(str(error) or type(error).__name__) from error

    @contextmanager
    def socket(self, path: str, *, open_seconds: float = 90.0) -> Iterator[Any]:
        """A websocket (``websockets.sync``) to a path of the server, closed at the end.

        Args:
            open_seconds: for the handshake; an app may have to start first.

        Raises:
            Problem: refused, or no server answers.
        """
        sync = needed("websockets.sync.client", "a websocket", "websockets>=15")
        errors = importlib.import_module("websockets.exceptions")
        url = f"ws{self.target.url.removeprefix('http')}{path}"
        verify = trusted_roots(self.target.url)
        options: Json = {"open_timeout": open_seconds, "max_size": None}
        if isinstance(verify, ssl.SSLContext):
            options["ssl"] = verify
        if self.target.on_loopback:
            options["proxy"] = None
        if self.target.key:
            options["additional_headers"] = {"Authorization": f"Key {self.target.key}"}
        try:
            connection = sync.connect(url, **options)
        except errors.InvalidStatus as error:
            answer = error.response
            refused = httpx.Response(
                answer.status_code, headers=dict(answer.headers), content=bytes(answer.body or b"")
            )
            raise self.refusal(refused) from error
        except (OSError, errors.WebSocketException, TimeoutError) as error:
            raise self._unreachable(httpx.ConnectError(str(error))) from error
        with connection:
            yield connection

    # Refusals

    def _unreachable(self, error: httpx.HTTPError) -> Problem:
        if isinstance(error, httpx.TimeoutException) and not isinstance(error, httpx.ConnectTimeout):
            return Problem(
                f"The server at {self.target.url} did not answer in time.",
                next_step="try again in a moment; its health is at /health.",
            )
        step = "start it with `keepwarm up`" if self.target.on_loopback else "check the address and the network"
        return Problem(
            f"No server answers at {self.target.url}.",
            why=f"{error or type(error).__name__} (the address comes from {self.target.source}).",
            next_step=f"{step}, or set KEEPWARM_URL to one that runs.",
        )

    def refusal(self, response: httpx.Response) -> Problem:
        """The server's own words for an error answer, with a next step where the status has one."""
        text = detail_of(response)
        status = response.status_code
        what, why, step = "", "", ""
        if status == 401:
            what = f"The key for {self.target.url} {'was refused' if self.target.key else 'is missing'} (401)."
            why = text
            step = "set FAL_KEY to a key that `keepwarm keys create` printed there; `fal profile key` remembers one."
        elif status == 413:
            what, step = f"Too large for the server: {text}", "the operator sets the limit (KEEPWARM_MAX_BODY_BYTES)."
        elif status in (429, 503):
            what, step = f"The server cannot take it now ({status}): {text}", "try again in a moment."
        elif status >= 500:
            what = f"The server failed ({status}): {text}"
            why = f"request {response.headers.get('x-fal-request-id', 'without an id')}."
            step = "its log says more; the operator finds it in the data folder's logs."
        else:
            return Problem.of_text(text, status=status)  # the server's own sentence says what and how
        return Problem(what, why=why, next_step=step, status=status)


def _blocks(stream: Any, advance: Callable[[int], None]) -> Iterator[bytes]:
    while block := stream.read(1 << 20):
        yield block
        advance(len(block))


def sse_data(lines: Iterator[str]) -> Iterator[str]:
    """The data of each event of a ``text/event-stream``, comments left out."""
    data: list[str] = []
    for line in lines:
        if line.startswith("data:"):
            data.append(line[5:].removeprefix(" "))
        elif not line and data:
            yield "\n".join(data)
            data = []


def detail_of(response: httpx.Response) -> str:
    """What an error answer says, on one line where it is a list of validation errors."""
    try:
        body = response.json()
    except ValueError:
        return response.text.strip()[:2000] or response.reason_phrase
    detail = body.get("detail", body) if isinstance(body, dict) else body
    if isinstance(detail, str):
        return detail
    if isinstance(detail, list):
        return "; ".join(_validation_line(item) for item in detail)
    return json.dumps(detail)


def _validation_line(item: Any) -> str:
    if not isinstance(item, dict):
        return str(item)
    where = ".".join(str(part) for part in item.get("loc", ()) if part != "body")
    return f"{where}: {item.get('msg', item)}" if where else str(item.get("msg", item))
