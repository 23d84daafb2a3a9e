"""``fal runners``: the workers of an app, under the name that users know, and what they logged.

Reads and prints.
"""

from __future__ import annotations

import base64
import sys
from typing import Any

import click

from fal.cli.logs import (
    Wanted,
    follow_option,
    limit_option,
    moment,
    search_option,
    show_logs,
    since_option,
    until_option,
)
from fal.cli.options import control_api, json_option


@click.group("runners")
def command() -> None:
    """See the runners of an app and their logs, stop them."""


state_option = click.option("--state", default=None, metavar="STATE", help="Only those in that state, as in idle.")
born_option = click.option(
    "--since", callback=moment, metavar="TIME", help="Only those that started then or later, as in 15m or 2h."
)
app_option = click.option("--app", default=None, help="Its app; looked up when not given.")


@command.command("list")
@click.argument("app", required=False)
@state_option
@born_option
@json_option
def list_runners(app: str | None, state: str | None, since: float | None, as_json: bool) -> None:
    """List runners: those of APP, or of all apps."""
    show_runners(app, as_json, state, since)


def show_runners(app: str | None, as_json: bool, state: str | None = None, since: float | None = None) -> None:
    """Print the runners of one app, or of every app when ``app`` is None.

    Args:
        state: only those in it. since: only those that started then (unix seconds) or later.
    """
    from fal._nouns import Apps, Runners
    from fal.cli.console import Screen, print_json, unix_time, when

    api = control_api()
    workers = Apps(api).runners(app) if app else Runners(api).list()
    if state is not None:
        workers = [item for item in workers if str(item.get("state")).lower() == state.lower()]
    if since is not None:
        workers = [item for item in workers if unix_time(item.get("created_at")) >= since]
    if as_json:
        print_json(workers)
        return
    Screen().table(
        ["Runner", "App", "State", "Revision", "Machine", "Host", "Running", "Served", "Since", "Start"],
        [
            (
                item.get("worker_id"),
                item.get("app"),
                f"{item.get('state')}{' (being replaced)' if item.get('retiring') else ''}",
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
    from fal._nouns import Runners

    api = control_api()
    wanted = Wanted(worker_id=runner, **window)
    show_logs(api, app or Runners(api).app_of(runner), wanted, follow=follow, limit=limit, as_json=as_json)


@command.command("gpus")
@json_option
def gpus(as_json: bool) -> None:
    """Count the GPUs that your runners hold, by machine type."""
    from fal._nouns import Runners
    from fal.cli.console import Screen, print_json

    metrics = Runners(control_api()).metrics()
    if as_json:
        print_json(metrics)
        return
    rows = [
        (app, name, count)
        for app, held in sorted(metrics["apps"].items())
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


@command.command("exec", context_settings={"allow_interspersed_args": False})
@click.option("--interactive", "-i", is_flag=True, help="Send this command's input.")
@click.option("--tty", "-t", is_flag=True, help="With a terminal, for shells and programs such as top; implies -i.")
@app_option
@click.argument("runner")
@click.argument("arguments", nargs=-1, required=True, type=click.UNPROCESSED, metavar="COMMAND...")
def execute(runner: str, arguments: tuple[str, ...], app: str | None, interactive: bool, tty: bool) -> None:
    """Run COMMAND beside a RUNNER: in its environment and its app's folder, without the app's secrets.

    \b
      fal runners exec RUNNER nvidia-smi
      fal runners exec RUNNER sh -c 'du -sh /data/*'
      fal runners exec -it RUNNER python
      fal runners exec -i RUNNER tar x -C /data < models.tar

    Its output comes here, and its exit status is this command's. Without -i it gets no input, and ends with Ctrl-C;
    with -t Ctrl-C is the COMMAND's. Options stand before RUNNER.
    """
    words = list(arguments[1:] if arguments[0] == "--" else arguments)
    if not words or words[0].startswith("-"):
        from fal._problem import Problem

        raise Problem(
            f"{' '.join(words) or 'Nothing'} is no command.",
            next_step="options stand before the runner: `fal runners exec -it RUNNER bash`.",
        )
    sys.exit(_execute(runner, words, app, interactive=interactive, tty=tty))


@command.command("shell")
@app_option
@click.argument("runner")
def shell(runner: str, app: str | None) -> None:
    """A shell beside a RUNNER: `fal runners exec -it RUNNER bash`, or sh where there is no bash."""
    words = ["sh", "-c", "if command -v bash >/dev/null; then exec bash -i; else exec sh -i; fi"]
    sys.exit(_execute(runner, words, app, interactive=True, tty=True))


def _execute(runner: str, words: list[str], app: str | None, *, interactive: bool, tty: bool) -> int:
    """The command's exit status, as a shell would tell it."""
    from fal._nouns import Runners

    api = control_api()
    path = Runners(api).path(runner, "/exec", app)
    if interactive or tty:
        from fal.cli.terminal import converse

        return converse(api, path, words, terminal=tty)
    return _listen(api, path, words)


def _listen(api: Any, path: str, words: list[str]) -> int:
    from fal._problem import Problem
    from fal._server import StreamBroken

    streams = {"stdout": sys.stdout.buffer, "stderr": sys.stderr.buffer}
    try:
        for event in api.events(path, method="POST", json={"command": words}):
            if event.get("type") == "exit":
                code = int(event["code"])
                return code if code >= 0 else 128 - code
            if stream := streams.get(str(event.get("type"))):
                stream.write(base64.b64decode(event["data"]))
                stream.flush()
    except StreamBroken as error:
        raise Problem(f"The connection to {api.target.url} was lost; the command was ended.", why=str(error)) from error
    raise Problem("The command was ended: its runner or the gateway stopped.", next_step="see `fal runners list`.")


def _stop(runner: str, app: str | None, how: str, as_json: bool) -> None:
    from fal._nouns import Runners
    from fal.cli.console import Screen, print_json

    answer = Runners(control_api()).stop(runner, how, app=app)
    if as_json:
        print_json(answer)
        return
    said = {"kill": "is killed", "drain": "finishes what it has and leaves", "replace": "leaves once it is replaced"}
    Screen().tick(f"Runner {runner} {said[how]}")
