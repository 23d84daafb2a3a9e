"""``fal deploy``: a stable URL for an app; every call makes a new revision.

Leaves reading the app to ``fal._loading`` and sending it to ``fal.cli.building``.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any, get_args

import click

from fal._spec import Auth
from fal.cli.options import env_option, ignored_options, json_option


@click.command("deploy")
@click.argument("ref", metavar="[REF]", required=False)
@click.option("--app-name", default=None, help="Name in the URL.  [default: from the class]")
@click.option(
    "--auth",
    type=click.Choice(get_args(Auth)),
    default=None,
    help="Who may call it.  [default: the class's app_auth, else as it was, else private]",
)
@click.option("--message", "-m", default=None, help="A note kept with the revision.")
@click.option("--reset-scale", is_flag=True, help="Take scaling settings from the code instead of keeping the app's.")
@click.option("--no-cache", is_flag=True, help="Build the environment anew.")
@click.option("--cpu-fallback", is_flag=True, help="The operator's choice, not a deploy's; says where it is made.")
@env_option
@click.option("--output", type=click.Choice(["pretty", "json"]), default="pretty", hidden=True)
@json_option
@click.option(
    "--strategy",
    type=click.Choice(["rolling", "recreate"]),
    default=None,
    help="rolling: old runners serve until new ones are ready; recreate: they leave first.  [default: rolling]",
)
@click.option("--check", is_flag=True, help="Show what would change, and do nothing.")
@click.option("--annotation", "annotations", multiple=True, metavar="KEY=VALUE", help="Kept with the revision.")
@click.option("--detach", is_flag=True, help="Do not wait for the build; the app is as it was until it is done.")
@ignored_options("--team", flags=("--yes", "--attach", "--no-scale"))
def command(
    ref: str | None,
    app_name: str | None,
    auth: Auth | None,
    message: str | None,
    reset_scale: bool,
    no_cache: bool,
    cpu_fallback: bool,
    env: str,
    output: str,
    as_json: bool,
    strategy: str | None,
    check: bool,
    annotations: tuple[str, ...],
    detach: bool,
) -> None:
    """Give an app a stable URL. Running requests finish on the old revision, new ones go to the new one.

    \b
    REF is a file (app.py), a class or served function in it (app.py::MyApp), or a name of [tool.fal.apps] in
    pyproject.toml.
    """
    from fal._loading import load
    from fal._server import ControlApi
    from fal.cli.building import Delivery
    from fal.cli.console import Screen, print_json
    from fal.cli.summary import note_lost_digits

    as_json = as_json or output == "json"
    screen = Screen(to_stderr=as_json)
    loaded = _annotated(load(ref, app_name=app_name, auth=auth, env=env), annotations)
    if cpu_fallback:
        screen.note("--cpu-fallback is the operator's choice for the whole platform: `keepwarm up --cpu-fallback`.")
    api = ControlApi(_server(loaded.spec.machine_types))
    name, reset_scale = loaded.spec.name, reset_scale or loaded.reset_scale
    if check:
        _check(api, loaded, reset_scale, as_json)
        return
    screen.line(f"Deploying {loaded.cls.__name__!r} as app {name!r}", "bold")
    note_lost_digits(screen, loaded)
    known = _look_before(api, loaded, screen)
    delivery = Delivery(api, screen)
    begun = delivery.begin(
        loaded,
        ephemeral=False,
        message=message,
        reset_scale=reset_scale,
        no_cache=no_cache,
        strategy=strategy or loaded.strategy,
    )
    if detach:
        if as_json:
            print_json({"revision": begun["revision"], "app_name": name, "status": "Deploying", "app": begun["app"]})
            return
        screen.tick(f"Revision {begun['revision']} is being built; `fal apps list-rev {name}` shows how far it is.")
        return
    built = delivery.finish(loaded, begun)
    if as_json:
        named = {"revision": built.revision, "app_name": name, "status": "Deployed"}
        print_json({**named, "app": built.app, "auth": built.auth, "urls": dict(built.urls)})
        return
    screen.tick("Deployed successfully")
    _show(built, loaded, screen)
    kept = None if known is None or reset_scale else known.get("scaling")
    if kept is not None and kept != asdict(loaded.spec.scaling):
        screen.note("Scaling settings were kept from the app as it was; --reset-scale takes them from the code.")


def _annotated(loaded: Any, pairs: tuple[str, ...]) -> Any:
    from fal._problem import Problem

    annotations = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator or not key:
            raise Problem(f"--annotation {pair!r} is not KEY=VALUE.", next_step="write, for example, ticket=OPS-7.")
        annotations[key] = value
    if not annotations:
        return loaded
    metadata = {**loaded.spec.metadata, "annotations": annotations}
    return replace(loaded, spec=replace(loaded.spec, metadata=metadata))


def _look_before(api: Any, loaded: Any, screen: Any) -> dict[str, Any] | None:
    """The app as it is, None when it is new; says what a user should know of either."""
    name = loaded.spec.name
    known = _existing(api, name)
    if known is not None:
        _warn_of_replacing(known, loaded, screen)
    elif not api.items(api.app_path(name, "/revisions")):  # else an earlier deploy did not get through
        screen.line(f"First deploy of {name}. Tip: `fal run` tries an app without giving it a name.", "dim")
    return known


def _check(api: Any, loaded: Any, reset_scale: bool, as_json: bool) -> None:
    from fal.cli.building import warn_of_missing_secrets
    from fal.cli.console import Screen, print_json

    answer = api.check_deploy(loaded.spec.to_json(), [asdict(f) for f in loaded.bundle.files], reset_scale=reset_scale)
    if as_json:
        print_json(answer)
        return
    screen = Screen()
    is_new = answer.get("revision") is None
    rows = [row for row in answer.get("settings", ()) if is_new or row["now"] != row["after"]]
    screen.line(f"{answer['app']} would be new:" if is_new else f"{answer['app']}, after the deploy:", "bold")
    screen.table(
        ["Setting", "Now", "After"],
        [(row["setting"], _value(row["now"]), _value(row["after"])) for row in rows],
        empty="Nothing would change.",
    )
    for row in answer.get("settings", ()):
        if "ignored" in row:
            screen.note(
                f"{row['setting']} stays {_value(row['after'])}; the code's {_value(row['ignored'])} counts with "
                "--reset-scale, or set it with `fal apps scale`."
            )
    if not answer.get("environment_is_built"):
        screen.line("Its environment would be built first.", "dim")
    warn_of_missing_secrets(screen, answer, loaded.spec.env)


def _value(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "" if value is None else str(value)


def _server(machine_types: tuple[str, ...]) -> Any:
    """The server to deploy to.

    Without any, a machine that could not run the app is told so first: starting a platform would not help.
    """
    from fal import _platform

    target = _platform.configured_server() or _platform.running_platform()
    if target is None:
        _platform.check_machine(machine_types)
        return _platform.find_server()
    return target


def _existing(api: Any, name: str) -> dict[str, Any] | None:
    response = api.request("GET", api.app_path(name), allow=(404,))
    if response.status_code == 404:
        return None
    content = response.json()
    return content if isinstance(content, dict) else {}


def _warn_of_replacing(known: dict[str, Any], loaded: Any, screen: Any) -> None:
    """Two classes can come to one name by chance, and a deploy would put the one in the other's place."""
    before, spec = (known.get("class_name"), known.get("entry_file")), loaded.spec
    if None in before or before == (spec.class_name, spec.entry_file):
        return
    screen.warning(
        f"app {spec.name!r} was made from {before[0]} in {before[1]}; this deploy puts {spec.class_name} of "
        f"{spec.entry_file} in its place."
    )
    screen.line(
        f"  Next:  if it is another app, give it a name of its own with --app-name, and take the old one back with "
        f"`fal apps set-rev {spec.name} {known.get('revision')}`."
    )


def _show(built: Any, loaded: Any, screen: Any) -> None:
    from fal.cli.summary import show_addresses, show_curl

    screen.line()
    screen.rule(built.app)
    show_addresses(screen, built, loaded)
    screen.parts(("▸ Revision ", "bold"), (built.revision, ""))
    screen.parts(("▸ Log ", "bold"), (f"fal logs {built.app.split('/')[-1]} --follow", ""))
    screen.rule()
    show_curl(screen, built, loaded)
