"""``fal apps``: list, show, scale, roll back and delete what is deployed.

Reads and prints; the server decides.
"""

from __future__ import annotations

import sys
import time
from typing import Any, get_args
from urllib.parse import quote

import click

from fal._spec import Auth
from fal.cli.options import control_api, env_of_option, ignored_options, json_option, strategy_option
from fal.cli.runners import born_option, show_runners, state_option


@click.group("apps")
def command() -> None:
    """List, show, scale, roll back and delete apps.

    An app is named as in its URL: my-app, or owner/my-app for somebody else's.
    """


@command.command("list")
@click.option("--filter", "part", default=None, metavar="TEXT", help="Only apps whose name holds TEXT.")
@click.option("--all", "everything", is_flag=True, help="Those of running `fal run` commands too.")
@click.option("--sort-by-runners", is_flag=True, help="Those with most runners first.")
@env_of_option
@ignored_options("--regions")
@json_option
def list_apps(part: str | None, everything: bool, sort_by_runners: bool, env: str | None, as_json: bool) -> None:
    """List apps."""
    from fal._nouns import Apps
    from fal.cli.console import Screen, print_json

    apps = Apps(control_api()).list(env=env, part=part or "", ephemeral=everything)
    if sort_by_runners:
        apps.sort(key=lambda app: -len(app.get("workers") or ()))
    if as_json:
        print_json(apps)
        return
    Screen().table(
        ["App", "Auth", "Revision", "Keep alive", "Min", "Max", "Runners", "Health"],
        [
            (
                app.get("app"),
                app.get("auth"),
                app.get("revision") or "none yet",
                f"{_scaling(app, 'keep_alive')} s",
                _scaling(app, "min_concurrency"),
                _scaling(app, "max_concurrency"),
                _runner_count(app),
                app.get("health"),
            )
            for app in apps
        ],
        empty="No apps. Deploy one with `fal deploy app.py::MyApp`.",
    )


def _scaling(app: dict[str, Any], key: str) -> Any:
    return (app.get("scaling") or {}).get(key, "")


def _runner_count(app: dict[str, Any]) -> Any:
    workers = app.get("workers", "")
    return len(workers) if isinstance(workers, list) else workers


@command.command("show")
@click.argument("app")
@json_option
def show(app: str, as_json: bool) -> None:
    """Show one app: why its requests wait, what its URL points at, its scaling settings."""
    from fal._nouns import Apps
    from fal.cli.console import Screen, print_json, when

    content = Apps(control_api()).get(app)
    if as_json:
        print_json(content)
        return
    screen = Screen()
    screen.rule(str(content.get("app", app)))
    if waiting := content.pop("waiting", None):
        screen.parts(("waiting                   ", "bold"), (str(waiting), "yellow"))
    content["runners"] = ", ".join(str(item.get("state")) for item in content.pop("workers", [])) or "asleep"
    for key, value in content.items():
        if key == "app":
            continue
        if isinstance(value, dict):
            screen.parts((key.replace("_", " "), "bold"))
            for name, inner in value.items():
                screen.parts((f"  {name:<24}", "dim"), (_plain(inner), ""))
        else:
            shown = when(value) if key.endswith("_at") else _plain(value)
            screen.parts((f"{key.replace('_', ' '):<26}", "bold"), (shown, ""))


def _plain(value: Any) -> str:
    import json

    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return ", ".join(value)
    return "-" if value is None else value if isinstance(value, str) else json.dumps(value)


@command.command("list-rev")
@click.argument("app")
@json_option
def list_revisions(app: str, as_json: bool) -> None:
    """List an app's revisions, newest first."""
    from fal.cli.console import Screen, print_json, when

    api = control_api()
    revisions = api.items(api.app_path(app, "/revisions"))
    if as_json:
        print_json(revisions)
        return
    current = api.json("GET", api.app_path(app)).get("revision")
    Screen().table(
        ["", "Revision", "State", "Created", "Message", "Error"],
        [
            (
                "→" if item.get("revision") == current else "",
                item.get("revision"),
                item.get("state"),
                when(item.get("created_at")),
                item.get("message"),
                str(item.get("error") or item.get("last_startup_error") or "").split("\n")[0],
            )
            for item in revisions
        ],
        empty="No revisions.",
    )


@command.command("set-rev")
@click.argument("app")
@click.argument("revision")
@click.option("--auth", type=click.Choice(get_args(Auth)), default=None, help="Who may call it.  [default: as it is]")
@strategy_option
@json_option
def set_revision(app: str, revision: str, auth: Auth | None, strategy: str, as_json: bool) -> None:
    """Point an app at an earlier (or later) revision, without a build. Its scaling settings stay."""
    from fal.cli.console import Screen, print_json

    api = control_api()
    body = {"revision": revision, "strategy": strategy} | ({"auth": auth} if auth else {})
    answer = api.json("POST", api.app_path(app, "/revision"), json=body)
    if as_json:
        print_json(answer)
        return
    Screen().tick(f"{api.app_id(app)} now runs revision {revision}; running requests finish on the one before.")


@command.command("delete")
@click.argument("app")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@json_option
def delete(app: str, yes: bool, as_json: bool) -> None:
    """Delete an app: its queued requests end with an error, its URL is gone."""
    from fal.cli.console import Screen, print_json

    api = control_api()
    name = api.app_id(app)
    if not yes and sys.stdin.isatty():
        click.confirm(f"Delete {name}?", abort=True)
    api.request("DELETE", api.app_path(app))
    if as_json:
        print_json({"deleted": name})
        return
    Screen().tick(f"Deleted {name}")


@command.command("delete-rev")
@click.argument("app")
@click.argument("revision")
@json_option
def delete_revision(app: str, revision: str, as_json: bool) -> None:
    """Delete a revision that does not serve; one cannot roll back to it any more."""
    from fal.cli.console import Screen, print_json

    api = control_api()
    api.request("DELETE", api.app_path(app, f"/revisions/{quote(revision, safe='')}"))
    if as_json:
        print_json({"deleted": revision})
        return
    Screen().tick(f"Deleted revision {revision} of {api.app_id(app)}")


@command.command("scale")
@click.argument("app")
@click.option("--keep-alive", type=click.IntRange(0), help="Seconds an idle runner stays.")
@click.option("--min-concurrency", type=click.IntRange(0), help="Runners kept warm without traffic.")
@click.option("--max-concurrency", type=click.IntRange(1), help="Most runners at a time.")
@click.option("--concurrency-buffer", type=click.IntRange(0), help="Idle runners kept beyond the load.")
@click.option("--concurrency-buffer-perc", type=click.IntRange(0), help="The same, as a percentage of the load.")
@click.option("--scaling-delay", type=click.FloatRange(0), help="Seconds a request waits before it starts a runner.")
@click.option("--app-priority", type=click.IntRange(-100, 100), help="Who gets a card first; 0 unless set.")
@click.option("--request-timeout", type=click.FloatRange(0, min_open=True), help="Seconds for one attempt.")
@click.option("--request-start-timeout", type=click.FloatRange(0), help="Seconds to wait for a start; 0: no limit.")
@click.option(
    "--max-multiplexing", type=click.IntRange(1), help="Requests a runner has at a time; until the next deploy."
)
@click.option("--startup-timeout", type=click.FloatRange(0, min_open=True), help="For setup(); until the next deploy.")
@click.option("--machine-types", default=None, metavar="TYPE[,TYPE]...", help="In order; until the next deploy.")
@ignored_options("--regions")
@json_option
def scale(app: str, as_json: bool, machine_types: str | None, **settings: Any) -> None:
    """Change scaling settings at once; they survive deploys (unless --reset-scale).

    Those that say "until the next deploy" belong to the code: they make a revision, from which you may roll back.
    """
    from fal._nouns import Apps
    from fal.cli.console import Screen, print_json

    changes = {key: value for key, value in settings.items() if value is not None}
    if changes.get("request_start_timeout") == 0:
        changes["request_start_timeout"] = None
    if machine_types is not None:
        changes["machine_types"] = [name.strip() for name in machine_types.split(",") if name.strip()]
    api = control_api()
    answer = Apps(api).scale(app, changes)
    if as_json:
        print_json(answer)
        return
    screen = Screen()
    screen.tick(f"{api.app_id(app)}: " + ", ".join(f"{key} = {_plain(value)}" for key, value in changes.items()))
    if passing := [key for key in ("max_multiplexing", "startup_timeout", "machine_types") if key in changes]:
        screen.note(
            f"{', '.join(passing)}: as the code says again after the next deploy (revision {answer['revision']})."
        )


@command.command("rollout")
@click.argument("app")
@strategy_option
@click.option("--force", is_flag=True, help="Kill them; what they run is tried again if it was queued.")
@click.option("--wait", is_flag=True, help="Until none of those that are there now is left.")
@json_option
def rollout(app: str, strategy: str, force: bool, wait: bool, as_json: bool) -> None:
    """Replace all runners of APP, so that they see changed secrets or files."""
    from fal._nouns import Apps
    from fal.cli.console import Screen, print_json

    api = control_api()
    old = {str(item["worker_id"]) for item in Apps(api).runners(app)}
    answer = Apps(api).rollout(app, strategy=strategy, force=force)
    if wait:
        _wait_gone(Apps(api), app, old, Screen(to_stderr=True))
    if as_json:
        print_json(answer)
        return
    count, name = answer.get("workers", 0), api.app_id(app)
    if count == 0:
        Screen().line(f"{name} has no runners; the next one starts afresh.", "dim")
        return
    runners = f"{count} runner{'s' * (count != 1)} of {name}"
    Screen().tick(
        f"Replaced {runners}." if wait else f"Replacing {runners}; `fal apps runners {app}` shows how far it is."
    )


def _wait_gone(apps: Any, app: str, old: set[str], screen: Any) -> None:
    """Until no runner of ``old`` is left; Ctrl-C stops waiting, not the rollout."""
    said = -1
    while left := len(old & {str(item["worker_id"]) for item in apps.runners(app)}):
        if left != said:
            screen.line(f"{left} to be replaced...", "dim")
            said = left
        time.sleep(0.3)


@command.command("runners")
@click.argument("app")
@state_option
@born_option
@json_option
def runners(app: str, state: str | None, since: float | None, as_json: bool) -> None:
    """List an app's runners, and the requests that they have now."""
    from fal._nouns import Apps
    from fal.cli.console import Screen, when

    show_runners(app, as_json, state, since)
    if as_json or not (requests := Apps(control_api()).running(app)):
        return
    screen = Screen()
    screen.line()
    screen.table(
        ["Request", "Runner", "Kind", "Attempt", "Began"],
        [
            (each["request_id"], each["worker_id"], each["mode"], each["attempt"], when(each["started_at"]))
            for each in requests
        ],
    )


@command.command("gpus")
@click.argument("app")
@json_option
def gpus(app: str, as_json: bool) -> None:
    """Count the GPUs that the runners of APP hold, by machine type."""
    from fal._nouns import Apps
    from fal.cli.console import Screen, print_json

    held = Apps(control_api()).gpus(app)
    if as_json:
        print_json({"total": sum(held.values()), "gpus": held})
        return
    Screen().table(["Machine", "GPUs"], list(held.items()), empty="Its runners hold no GPU.")
