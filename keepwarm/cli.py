"""The operator's command ``keepwarm``: running the platform, looking at it, its keys, its services.

Reads arguments and prints; the work is in the other modules, imported when they are needed so that help is instant.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import click
from fal._spec import KeyScope

from keepwarm import state

if TYPE_CHECKING:
    from scheduler.store import Store

T = TypeVar("T")

_data_option = click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    default=None,
    help="Folder for everything the platform keeps.  [default: $KEEPWARM_DATA or ~/.keepwarm]",
)


def _folder(data: Path | None) -> Path:
    return data.expanduser().absolute() if data is not None else state.data_dir()


def _fail(message: str) -> None:
    click.echo(f"keepwarm: {message}", err=True)
    sys.exit(1)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="keepwarm", prog_name="keepwarm")
def main() -> None:
    """Run private AI models on your own GPUs: this command is the operator's, `fal` is the app developer's."""


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8787, show_default=True, type=click.IntRange(0, 65535), help="0 picks a free one.")
@_data_option
@click.option("--owner", default=None, help="First part of every app's URL.  [default: $KEEPWARM_OWNER or your user]")
@click.option("--redis-url", default=None, help="Use this Redis (7.0 or newer) instead of embedding one.")
@click.option("--public-url", default=None, help="Base URL that callers use, when a proxy stands in front.")
@click.option("--tls", is_flag=True, help="Serve HTTPS with a certificate of its own making; see `keepwarm env`.")
@click.option(
    "--fsync",
    type=click.Choice(["always", "everysec"]),
    default=None,
    help="How durable an accepted request is: 'always' survives a power cut, 'everysec' is faster and may lose the "
    "last seconds then.  [default: always; everysec with --ephemeral]",
)
@click.option("--cpu-fallback", is_flag=True, help="Let this machine's CPU stand in for GPU types: slow, and says so.")
@click.option("--offer", default=None, metavar="TYPE=N", help="Machine types this host serves, e.g. GPU-A100=2.")
@click.option("--no-zygote", is_flag=True, help="Start every worker from nothing: no process imports ahead.")
@click.option("--ephemeral", is_flag=True, help="Leave as soon as no `fal run` is left.")
def up(
    host: str,
    port: int,
    data: Path | None,
    owner: str | None,
    redis_url: str | None,
    public_url: str | None,
    tls: bool,
    fsync: Any,
    cpu_fallback: bool,
    no_zygote: bool,
    offer: str | None,
    ephemeral: bool,
) -> None:
    """Run the platform until Ctrl-C: Redis, gateway, scheduler, host agent and jobs.

    One Ctrl-C (or SIGTERM) lets running requests finish and stops everything; a second one forces it.
    """
    from keepwarm.platform import Options, run

    try:
        chosen = state.checked_owner(owner) if owner else state.default_owner()
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--owner") from error
    options = Options(
        host=host,
        port=port,
        data=_folder(data),
        owner=chosen,
        fsync=fsync or ("everysec" if ephemeral else "always"),
        redis_url=redis_url or os.environ.get("KEEPWARM_REDIS_URL"),
        public_url=public_url.rstrip("/") if public_url else os.environ.get("KEEPWARM_PUBLIC_URL"),
        cpu_fallback=cpu_fallback or os.environ.get("KEEPWARM_CPU_FALLBACK") == "1",
        zygotes=not no_zygote,
        offer=offer or os.environ.get("KEEPWARM_OFFER"),
        ephemeral=ephemeral,
        tls=tls,
    )
    sys.exit(run(options))


@main.command()
@click.argument("ref", required=False)
@_data_option
@click.option("--machine-type", "machine_types", multiple=True, help="Ask whether this type can be had here.")
@click.option("--cpu-fallback", is_flag=True, help="Answer as a platform started with --cpu-fallback would.")
@click.option("--offer", default=None, metavar="TYPE=N", help="Answer as a platform started with this --offer would.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
def doctor(
    ref: str | None,
    data: Path | None,
    machine_types: tuple[str, ...],
    cpu_fallback: bool,
    offer: str | None,
    as_json: bool,
) -> None:
    """Say what this machine has, what is missing and how to get it.

    With REF (file.py::Class) or --machine-type, also whether such an app could run here. Exits 1 when something
    necessary is missing.
    """
    from keepwarm.doctor import examine

    if ref:
        machine_types = _machine_types_of(ref)
    cpu_fallback = cpu_fallback or os.environ.get("KEEPWARM_CPU_FALLBACK") == "1"
    offer = offer or os.environ.get("KEEPWARM_OFFER")
    report = examine(_folder(data), machine_types, cpu_fallback=cpu_fallback, offer=offer)
    if as_json:
        click.echo(json.dumps(report.to_json()))
    else:
        marks = {"ok": "✓", "warn": "!", "missing": "✗"}
        for finding in report.findings:
            click.echo(f"{marks[finding.verdict]} {finding.subject:<12} {finding.detail}")
            if finding.fix and finding.verdict != "ok":
                click.echo(f"  {'':<12} → {finding.fix}")
        click.echo(f"  {'offers':<12} {', '.join(report.machine_types)}")
        if report.refusal:
            click.echo(f"✗ {report.refusal}")
        elif machine_types:
            click.echo(f"✓ {' or '.join(machine_types)} can run here")
    sys.exit(0 if report.healthy else 1)


def _machine_types_of(ref: str) -> tuple[str, ...]:
    from fal._loading import LoadError, load

    try:
        return load(ref).spec.machine_types
    except LoadError as error:
        _fail(str(error))
        raise AssertionError from error


@main.command()
@_data_option
def env(data: Path | None) -> None:
    """Print what a shell must export to reach the running platform: eval "$(keepwarm env | sed 's/^/export /')"."""
    from fal._platform import client_environ

    folder = _folder(data)
    record = _running(folder)
    variables = client_environ(record.url, official=record.url.startswith("https:"))
    if record.ca_bundle:
        variables["SSL_CERT_FILE"] = record.ca_bundle
    if key := state.read_admin_key(folder):
        variables["FAL_KEY"] = key
    for name, value in variables.items():
        click.echo(f"{name}={value}")


@main.command()
@_data_option
@click.option("--port", default=8788, show_default=True, type=click.IntRange(0, 65535), help="0 picks a free one.")
def proxy(data: Path | None, port: int) -> None:
    """Lead clients that only know fal's addresses to the running platform (needs `keepwarm up --tls`).

    With HTTPS_PROXY set to what this prints, and the variables of `keepwarm env`, connections to fal.run, rest.fal.ai
    and fal's other hosts end at the platform; all others go where they were going. Listens on loopback only.
    """
    from keepwarm.connect_proxy import run

    record = _running(_folder(data))
    if not record.url.startswith("https:"):
        _fail(f"the platform at {record.url} does not serve HTTPS; start it with `keepwarm up --tls`")
    sys.exit(run(record.url, port))


@main.command()
@_data_option
@click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
def status(data: Path | None, as_json: bool) -> None:
    """Show the running platform: its address, hosts, apps and their workers."""
    folder = _folder(data)
    record = _running(folder)

    async def look(store: Store) -> dict[str, Any]:
        apps = []
        for app in await store.apps.list():
            seen = await store.apps.observe(app.app)
            apps.append(
                {
                    "app": app.app,
                    "revision": app.revision,
                    "auth": app.auth,
                    "queued": seen.queued + seen.delayed,
                    "in_progress": seen.in_progress,
                    "workers": [worker.state.value for worker in seen.workers],
                }
            )
        return {"url": record.url, "pid": record.pid, "hosts": await _hosts(store), "apps": apps}

    found = _with_store(folder, look)
    if as_json:
        click.echo(json.dumps(found))
        return
    click.echo(f"platform   {found['url']} (process {found['pid']})")
    for host in found["hosts"]:
        click.echo(
            f"host       {host['host']}: {', '.join(host['machine_types'])}{'' if host['alive'] else ' (silent)'}"
        )
    for app in found["apps"]:
        workers = ", ".join(app["workers"]) or "asleep"
        waiting = f"{app['queued']} queued, {app['in_progress']} running"
        click.echo(f"app        {app['app']} ({app['auth']}): {workers}; {waiting}")


@main.command()
@_data_option
@click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
def hosts(data: Path | None, as_json: bool) -> None:
    """List the hosts and what they offer."""
    found = _with_store(_folder(data), _hosts)
    if as_json:
        click.echo(json.dumps(found))
        return
    for host in found:
        gpus = ", ".join(name for _, name, _, _ in host["gpus"]) or "no GPU"
        standing = ", CPU stands in for GPU types" if host["cpu_fallback"] else ""
        click.echo(f"{host['host']}: {', '.join(host['machine_types'])} ({gpus}{standing})")


@main.group()
def keys() -> None:
    """Make and take back API keys."""


@keys.command("create")
@_data_option
@click.option("--owner", default=None, help="Whose apps the key manages.  [default: the platform's owner]")
@click.option("--name", default="", help="A note to yourself.")
@click.option(
    "--scope",
    type=click.Choice(get_args(KeyScope), case_sensitive=False),
    default="FULL",
    show_default=True,
    help="API: call apps; DEPLOY: deploy and look after them; READONLY: look.",
)
@click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
def keys_create(data: Path | None, owner: str | None, name: str, scope: KeyScope, as_json: bool) -> None:
    """Make a key and print it as id:secret; it is shown this once."""
    try:
        chosen = state.checked_owner(owner) if owner else _platform_owner(_folder(data))
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--owner") from error
    record, secret = _with_store(_folder(data), lambda store: store.keys.create(chosen, name, scope))
    if as_json:
        made = {"key_id": record.key_id, "owner": record.owner, "scope": scope, "key": f"{record.key_id}:{secret}"}
        click.echo(json.dumps(made))
    else:
        click.echo(f"{record.key_id}:{secret}")


@keys.command("list")
@_data_option
@click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
def keys_list(data: Path | None, as_json: bool) -> None:
    """List keys, without their secrets."""
    found = _with_store(_folder(data), lambda store: store.keys.list())
    if as_json:
        shown = ("key_id", "owner", "name", "scope", "revoked")
        click.echo(json.dumps([{field: getattr(key, field) for field in shown} for key in found]))
        return
    for key in found:
        click.echo(f"{key.key_id}  {key.owner}  {key.scope}  {key.name}{'  (revoked)' if key.revoked else ''}")


@keys.command("revoke")
@_data_option
@click.argument("key_id")
def keys_revoke(data: Path | None, key_id: str) -> None:
    """Take a key back; requests with it are refused from now on."""
    if not _with_store(_folder(data), lambda store: store.keys.revoke(key_id)):
        _fail(f"there is no key {key_id!r}; `keepwarm keys list` shows them")


@main.command()
@click.argument("name", type=click.Choice(["gateway", "scheduler", "agent", "jobs"]))
def service(name: str) -> None:
    """Run one service in this process, configured by KEEPWARM_* variables (for containers and several hosts)."""
    from keepwarm.services import run_service

    if not os.environ.get("KEEPWARM_REDIS_URL"):
        _fail("KEEPWARM_REDIS_URL is not set; a single service needs to be told its Redis")
    folder = state.data_dir()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.environ["KEEPWARM_DATA"] = str(folder)
    os.environ.setdefault("KEEPWARM_OWNER", state.default_owner())
    os.environ.setdefault("KEEPWARM_SDK_DIR", str(state.install_sdk(folder)))
    run_service(name)


@main.command()
@click.argument("name", type=click.Choice(["gateway", "scheduler", "agent", "jobs"]))
def health(name: str) -> None:
    """Exit 0 while the service NAME on this host works, 1 when it does not (for container health checks)."""
    if name == "gateway":
        ok = _gateway_answers()
    else:
        ok = _with_store(state.data_dir(), lambda store: _service_works(store, name))
    click.echo(f"{name}: {'ok' if ok else 'no sign of life'}")
    sys.exit(0 if ok else 1)


def _gateway_answers() -> bool:
    import httpx

    port = os.environ.get("KEEPWARM_BIND_PORT") or "8787"
    scheme = "https" if os.environ.get("KEEPWARM_TLS_CERT") else "http"
    try:
        # Its certificate is for the names that callers use; over loopback nothing is to be proved.
        url = f"{scheme}://127.0.0.1:{port}/health"
        return httpx.get(url, timeout=4, trust_env=False, verify=False).status_code == 200
    except httpx.HTTPError:
        return False


async def _service_works(store: Store, name: str) -> bool:
    import socket

    if name == "agent":
        own = os.environ.get("KEEPWARM_HOST_ID") or socket.gethostname()
        return any(host.host == own and host.alive for host in await store.hosts.list())
    return await store.services.alive(name, socket.gethostname())


def _running(folder: Path) -> state.PlatformFile:
    record = state.read_platform_file(folder)
    if record is None or not state.is_running(record):
        _fail(f"no platform runs on {folder}; start one with `keepwarm up`")
        raise AssertionError
    return record


def _platform_owner(folder: Path) -> str:
    record = state.read_platform_file(folder)
    return record.owner if record is not None else state.default_owner()


async def _hosts(store: Store) -> list[dict[str, Any]]:
    from dataclasses import asdict

    return [asdict(host) for host in await store.hosts.list()]


def _with_store(folder: Path, use: Callable[[Store], Awaitable[T]]) -> T:
    """Run ``use`` against the platform's Redis: KEEPWARM_REDIS_URL, else that of the platform running on ``folder``."""
    from scheduler.store import Store
    from scheduler.store.errors import StoreError

    url = os.environ.get("KEEPWARM_REDIS_URL") or _running(folder).redis_url

    async def work() -> T:
        store = await Store.connect(url, folder)
        try:
            return await use(store)
        finally:
            await store.close()

    try:
        return asyncio.run(work())
    except (StoreError, ValueError) as error:
        _fail(f"Redis at {url} cannot be used: {error}")
        raise AssertionError from error
