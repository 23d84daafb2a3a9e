"""``fal runners``: the workers of an app, under the name that users know, and what they logged.

Reads and prints.
"""

from __future__ import annotations

import base64
import sys
from typing import Any
from urllib.parse import quote

import click

from fal.cli.logs import (
    Wanted,
    follow_option,
    limit_option,
    search_option,
    show_logs,
    since_option,
    until_option,
)
from fal.cli.options import control_api, items_of, json_option


@click.group("runners")
def command() -> None:
    """See the runners of an app and their logs, stop them."""


state_option = click.option("--state", default=None, metavar="STATE", help="Only those in that state, as in idle.")
app_option = click.option("--app", default=None, help="Its app; looked up when not given.")


@command.command("list")
@click.argument("app", required=False)
@state_option
@json_option
def list_runners(app: str | None, state: str | None, as_json: bool) -> None:
    """List runners: those of APP, or of all apps."""
    show_runners(app, as_json, state)


def show_runners(app: str | None, as_json: bool, state: str | None = None) -> None:
    """Print the runners of one app, or of every app when ``app`` is None; only those in ``state`` if it is given."""
    from fal.cli.console import Screen, print_json, when

    api = control_api()
    names = [app] if app else [str(item["app"]) for item in items_of(api.json("GET", "/api/v1/apps"))]
    workers = [item for name in names for item in items_of(api.json("GET", api.app_path(name, "/workers")))]
    if state is not None:
        workers = [item for item in workers if str(item.get("state")).lower() == state.lower()]
    if as_json:
        print_json(workers)
        return
    screen = Screen()
    screen.table(
        ["Runner", "App", "State", "Revision", "Machine", "Host", "Running", "Served", "Since", "Start"],
        [
            (
                item.get("worker_id"),
                item.get("app"),
                f"{item.get('state')}{_leaving(item)}",
                item.get("revision"),
                _machine(item),
                item.get("host"),
                item.get("in_flight"),
                item.get("served"),
                when(item.get("created_at")),
                _start(item),
            )
            for item in workers
        ],
        empty="No runners: the app sleeps until the next request." if app else "No runners: every app sleeps.",
    )
    for item in workers:
        if item.get("unhealthy"):
            screen.note(f"{item.get('worker_id')}: {item.get('retiring')}.")


def _leaving(worker: dict[str, Any]) -> str:
    if worker.get("unhealthy"):
        return " (unhealthy, being replaced)"
    return " (being replaced)" if worker.get("retiring") else ""


def _machine(worker: dict[str, Any]) -> str:
    name = str(worker.get("machine_type", ""))
    return f"{name} (CPU stands in)" if worker.get("cpu_fallback_for") else name


def _start(worker: dict[str, Any]) -> str:
    from fal.cli.watching import start_times

    return start_times(worker).strip().removeprefix("after ")


@command.command("logs")
@click.argument("runner")
@app_option
@follow_option
@limit_option
@search_option
@since_option
@until_option
@json_option
def logs(runner: str, app: str | None, follow: bool, limit: int, as_json: bool, **window: Any) -> None:
    """Show what one RUNNER (an id from `fal runners list`) logged."""
    api = control_api()
    wanted = Wanted(worker_id=runner, **window)
    show_logs(api, app or _app_of(api, runner), wanted, follow=follow, limit=limit, as_json=as_json)


@command.command("gpus")
@json_option
def gpus(as_json: bool) -> None:
    """Count the GPUs that your runners hold, by machine type."""
    from fal.cli.console import Screen, print_json

    answer = control_api().json("GET", "/rest/applications/metrics")
    if as_json:
        print_json(answer)
        return
    rows = [
        (app, name, count)
        for app, held in sorted(answer["apps"].items())
        for name, count in sorted(held["gpu_count_by_type"].items())
        if count
    ]
    Screen().table(["App", "Machine", "GPUs"], rows, empty="No runner holds a GPU.")


@command.command("stop")
@click.argument("runner")
@app_option
@click.option("--replace-first", is_flag=True, help="Only once another one is ready, if the app needs one.")
@json_option
def stop(runner: str, app: str | None, replace_first: bool, as_json: bool) -> None:
    """Let a RUNNER finish what it has and leave."""
    _stop(runner, app, "replace" if replace_first else "drain", as_json)


@command.command("kill")
@click.argument("runner")
@app_option
@json_option
def kill(runner: str, app: str | None, as_json: bool) -> None:
    """End a RUNNER now. What it runs is tried again elsewhere if it was queued, and fails if somebody waits for it."""
    _stop(runner, app, "kill", as_json)


@command.command("exec", context_settings={"ignore_unknown_options": True})
@click.argument("runner")
@click.argument("arguments", nargs=-1, required=True, type=click.UNPROCESSED, metavar="COMMAND...")
@app_option
def execute(runner: str, arguments: tuple[str, ...], app: str | None) -> None:
    """Run COMMAND beside a RUNNER: in its environment and its app's folder, without the app's secrets.

    \b
      fal runners exec RUNNER nvidia-smi
      fal runners exec RUNNER -- sh -c 'du -sh /data/*'

    Its output comes here, and its exit status is this command's. It gets no input, and ends with Ctrl-C.
    """
    from fal._problem import Problem
    from fal._server import StreamBroken

    api = control_api()
    path = api.app_path(app or _app_of(api, runner), f"/workers/{quote(runner, safe='')}/exec")
    streams = {"stdout": sys.stdout.buffer, "stderr": sys.stderr.buffer}
    words = arguments[1:] if arguments[0] == "--" else arguments
    try:
        for event in api.events(path, method="POST", json={"command": list(words)}):
            if event.get("type") == "exit":
                sys.exit(int(event["code"]) if event["code"] >= 0 else 128 - int(event["code"]))
            if stream := streams.get(str(event.get("type"))):
                stream.write(base64.b64decode(event["data"]))
                stream.flush()
    except StreamBroken as error:
        raise Problem(f"The connection to {api.target.url} was lost; the command was ended.", why=str(error)) from error
    raise Problem("The command was ended: its runner or the gateway stopped.", next_step="see `fal runners list`.")


def _stop(runner: str, app: str | None, how: str, as_json: bool) -> None:
    from fal.cli.console import Screen, print_json

    api = control_api()
    path = api.app_path(app or _app_of(api, runner), f"/workers/{quote(runner, safe='')}/stop")
    answer = api.json("POST", path, json={"how": how})
    if as_json:
        print_json(answer)
        return
    said = {"kill": "is killed", "drain": "finishes what it has and leaves", "replace": "leaves once it is replaced"}
    Screen().tick(f"Runner {runner} {said[how]}")


def _app_of(api: Any, runner: str) -> str:
    from fal._problem import Problem

    for item in items_of(api.json("GET", "/api/v1/apps")):
        name = str(item["app"])
        if any(w.get("worker_id") == runner for w in items_of(api.json("GET", api.app_path(name, "/workers")))):
            return name
    raise Problem(
        f"No app has a runner {runner!r} now.",
        next_step="for one that is gone, name its app: `fal runners logs RUNNER --app APP`.",
    )
