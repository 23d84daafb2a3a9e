"""``fal api``: one call to an app from the command line, through its queue (or as a stream).

Owns reading ``key=value`` arguments and showing progress. Leaves the wire to the server.
"""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click

from fal._problem import Problem
from fal.cli.options import control_api

_PART = re.compile(r"\[([^\]]*)\]")
_POLL_SECONDS = (0.05, 0.1, 0.2, 0.5, 1.0)


@click.command("api")
@click.argument("app")
@click.argument("arguments", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--data", "-d", default=None, metavar="JSON", help="The whole body; @file reads it, - is stdin.")
@click.option("--logs/--no-logs", default=True, help="Show the request's log lines.  [default: yes]")
def command(app: str, arguments: tuple[str, ...], data: str | None, logs: bool) -> None:
    """Call APP (my-app, my-app/path or a URL) and print its JSON answer on stdout.

    \b
    Values are JSON where they parse as JSON, else text:
      fal api my-app prompt="a rhino" steps=4 size[width]=512 tags[]=a tags[]=b
    A path that ends in /stream is called directly and printed as it comes.
    """
    from fal.cli.console import Screen

    body = _body(arguments, data)
    api = control_api()
    name, path = _endpoint(api, app)
    screen = Screen(to_stderr=True)
    if path.endswith("/stream"):
        _stream(api, name, path, body)
        return
    submitted = api.json("POST", f"/queue/{quote(name)}{path}", json=body)
    request_id = str(submitted["request_id"])
    try:
        _wait(api, name, request_id, screen, logs)
    except KeyboardInterrupt:
        api.request("PUT", f"/queue/{quote(name)}/requests/{quote(request_id)}/cancel", allow=(400, 404))
        screen.line(f"Cancelled {request_id}")
        raise
    _print_result(api, name, request_id)


def _endpoint(api: Any, app: str) -> tuple[str, str]:
    """``owner/name`` and the path below it."""
    from urllib.parse import urlsplit

    parts = [part for part in (urlsplit(app).path if "://" in app else app).split("/") if part]
    if parts[:1] == ["queue"]:
        parts = parts[1:]
    if not parts:
        raise Problem(f"{app!r} is not the name of an app.", next_step="see `fal apps list`.")
    # my-app/path and owner/app look alike: the caller's own app of that name comes first.
    own = api.owner()
    if len(parts) == 1 or (parts[0] != own and _is_own(api, f"{own}/{parts[0]}")):
        parts = [own, *parts]
    return "/".join(parts[:2]), "".join(f"/{quote(part)}" for part in parts[2:])


def _is_own(api: Any, app: str) -> bool:
    return bool(api.request("GET", f"/api/v1/apps/{quote(app)}", allow=(403, 404)).status_code == 200)


def _wait(api: Any, app: str, request_id: str, screen: Any, logs: bool) -> None:
    path = f"/queue/{quote(app)}/requests/{quote(request_id)}/status"
    shown, said, polls = 0, "", 0
    while True:
        status = api.json("GET", path, params={"logs": "1"} if logs else {})
        state = str(status.get("status"))
        text = state if state != "IN_QUEUE" else f"{state}, {status.get('queue_position', 0)} before it"
        if text != said:
            screen.line(f"{request_id}: {text}", "dim")
            said, polls = text, 0
        entries = status.get("logs") or []
        for entry in entries[shown:]:
            screen.log({"at": entry.get("timestamp"), **entry})
        shown = max(shown, len(entries))
        if state not in ("IN_QUEUE", "IN_PROGRESS"):
            return
        time.sleep(_POLL_SECONDS[min(polls // 4, len(_POLL_SECONDS) - 1)])
        polls += 1


def _print_result(api: Any, app: str, request_id: str) -> None:
    from fal._server import detail_of

    response = api.request("GET", f"/queue/{quote(app)}/requests/{quote(request_id)}", allow=range(400, 600))
    if response.is_error:
        kind = response.headers.get("x-fal-error-type")
        raise Problem(
            f"The request failed ({response.status_code}): {detail_of(response)}",
            why=f"error type {kind}." if kind else "",
            # An error of the platform is about the runner, not about this request's own lines.
            next_step=f"`fal logs {app}{'' if kind else f' --request {request_id}'}` shows more.",
        )
    if "json" in response.headers.get("content-type", ""):
        click.echo(json.dumps(response.json(), indent=2, ensure_ascii=False))
    else:
        sys.stdout.buffer.write(response.content)


def _stream(api: Any, app: str, path: str, body: Any) -> None:
    from fal._server import StreamBroken, sse_data

    try:
        with api.stream("POST", f"/{quote(app)}{path}", json=body, timeout=None) as response:
            if "event-stream" not in response.headers.get("content-type", ""):
                click.echo(response.read().decode(errors="replace"))
                return
            for data in sse_data(response.iter_lines()):
                click.echo(data)
    except StreamBroken as error:
        raise Problem("The stream broke off.", why=str(error)) from error


def _body(arguments: tuple[str, ...], data: str | None) -> Any:
    if data is not None and arguments:
        raise Problem("Give KEY=VALUE arguments or --data, not both.")
    if data is None:
        body: dict[str, Any] = {}
        for argument in arguments:
            key, separator, value = argument.partition("=")
            if not separator or not key:
                raise Problem(f"{argument!r} is not KEY=VALUE.", next_step="write, for example, prompt='a rhino'.")
            _put(body, argument, [key.split("[", 1)[0], *_PART.findall(key)], _value(value))
        return body
    try:
        if data == "-":
            return json.loads(sys.stdin.read())
        return json.loads(Path(data[1:]).read_text() if data.startswith("@") else data)
    except (OSError, ValueError) as error:
        raise Problem("--data is not JSON.", why=str(error)) from error


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _put(body: dict[str, Any], argument: str, keys: list[str], value: Any) -> None:
    """Set a nested value: ``a[b]=1`` makes objects, ``a[]=1`` appends to a list."""
    here: Any = body
    for number, key in enumerate(keys):
        last = number == len(keys) - 1
        following: Any = None if last else ([] if keys[number + 1] == "" else {})
        try:
            if key == "":
                here.append(value if last else following)
                here = here[-1]
            elif last:
                here[key] = value
            else:
                here = here.setdefault(key, following)
        except (AttributeError, TypeError) as error:
            raise Problem(f"{argument!r} does not fit the arguments before it.") from error
