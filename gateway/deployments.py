"""Deploys: takes a revision in, asks for its environment, and tells the caller how the build goes.

Leaves building, and pointing the alias at the revision, to the jobs service.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from dataclasses import replace
from typing import Any

import structlog
from fal import _offers
from fal._limits import APP_NAME_RULE, env_of, is_app_name, name_in_env
from fal._spec import AppSpec, BundleFile
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from envbuilder.errors import BadRequirement
from envbuilder.key import environment_key
from envbuilder.requirements import parse, placeholders
from scheduler.store import keys
from scheduler.store.records import ApiKeyRecord, EnvironmentState, RevisionRecord, RevisionState

from . import deploy_check, shapes, wire
from .auth import check_owner
from .control import Control, answer
from .errors import Refusal, bad_request
from .events import Events, Story
from .operations import describe, events
from .shapes import Urls
from .specs import missing_objects, read_files, read_spec
from .workers import strategy_of

log = structlog.get_logger("gateway.deployments")

_LOOK_SECONDS = 1.0


class Deployments:
    """Routes below ``/api/v1/deployments``."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._store = control.store

    def routes(self) -> list[Route]:
        return [
            Route("/api/v1/deployments", self.create, methods=["POST"]),
            Route("/api/v1/deployments/check", self.check, methods=["POST"]),
            Route("/api/v1/deployments/{owner}/{app}/{revision}/events", self.events, methods=["GET"]),
        ]

    @describe(201, shapes.Deployed, body=shapes.Deployment, refusals=(403, 404, 409))
    async def create(self, request: Request) -> Response:
        """A new revision; it serves once its environment is built.

        Raises:
            Refusal: as ``_asked_for``; 409 when a file was not sent.
        """
        caller = await self._control.caller(request)
        body = await self._control.json(request)
        replaced = await self._replaced(body, caller)
        spec, files = await self._asked_for(body, caller.owner)
        ephemeral, message = _flag(body, "ephemeral"), _message(body)
        no_cache = _flag(body, "no_cache")
        if ephemeral:
            # The name is the only thing that keeps a public app private to those who were told it.
            spec = replace(spec, name=replaced or str(uuid.uuid4()), auth=spec.auth or "public")
        app = f"{caller.owner}/{spec.name}"
        anew = uuid.uuid4().hex[:12] if no_cache else await self._built_anew(app, spec)
        spec = replace(spec, environment=replace(spec.environment, built_anew=anew))
        revision = await self._store_revision(app, spec, files, message)
        await self._store.environments.request_build(
            revision.app,
            revision.revision,
            ephemeral=ephemeral,
            reset_scale=_flag(body, "reset_scale"),
            recreate=strategy_of(body) == "recreate",
        )
        log.info("revision registered", app=revision.app, revision=revision.revision, key_id=caller.key_id)
        urls = self._control.urls(request, revision.app)
        return answer(
            {
                "app": revision.app,
                "revision": revision.revision,
                "environment_key": revision.environment_key,
                "state": revision.state.value,
                "urls": {**urls, "endpoints": wire.endpoints(revision, urls)},
                "missing_secrets": await self._missing_secrets(caller.owner, spec),
            },
            201,
        )

    async def _replaced(self, body: dict[str, Any], caller: ApiKeyRecord) -> str | None:
        """Name of the ``fal run`` app that this revision is for; None for a deployed app and for a new run.

        Raises:
            Refusal: 400 unless it is text and the deploy is ephemeral, 403 for another's app, 404 when it is gone.
        """
        app = body.get("replaces")
        if app is None:
            return None
        if not isinstance(app, str) or not _flag(body, "ephemeral"):
            raise bad_request('"replaces" must be the "owner/name" of an ephemeral app, in an ephemeral deploy.')
        owner, _, name = app.partition("/")
        check_owner(owner, caller)
        alias = await self._store.apps.get(app) if is_app_name(name) else None
        if alias is None or not alias.ephemeral:
            raise Refusal(404, f'There is no ephemeral app "{app[:80]}"; its "fal run" may have ended.')
        return name

    @describe(200, shapes.DeployCheck, body=shapes.Deployment, refusals=(404, 409))
    async def check(self, request: Request) -> Response:
        """What a deploy would change; nothing is stored, and no file needs to have been sent."""
        owner = (await self._control.caller(request)).owner
        body = await self._control.json(request)
        spec, files = await self._asked_for(body, owner)
        app = f"{owner}/{spec.name}"
        alias = await self._store.apps.get(app)
        serving = await self._store.apps.revision(app, alias.revision) if alias and alias.revision else None
        try:
            anew = await self._built_anew(app, spec)
            key = environment_key(replace(spec.environment, built_anew=anew))
        except BadRequirement as error:
            raise bad_request(str(error)) from None
        environment = await self._store.environments.get(key)
        rows = deploy_check.changes(alias, serving, spec, files, reset_scale=_flag(body, "reset_scale"))
        return answer(
            {
                "app": app,
                "revision": serving.revision if serving is not None else None,
                "settings": rows,
                "environment_is_built": environment is not None and environment.state is EnvironmentState.READY,
                "missing_secrets": await self._missing_secrets(owner, spec),
            }
        )

    async def _asked_for(self, body: dict[str, Any], owner: str) -> tuple[AppSpec, tuple[BundleFile, ...]]:
        """Spec and files of a deploy that can work.

        Raises:
            Refusal: 400, 404 for an environment that is not there, 409 when no host offers the machine type.
        """
        spec = read_spec(body.get("spec"))
        files = read_files(body.get("files"), spec)
        hosts = await self._store.hosts.list()
        refusal = _offers.refusal(spec.machine_types, hosts, spec.num_gpus, spec.gpu_memory_mb)
        if refusal is not None:
            raise Refusal(409, refusal)
        return await self._in_env(spec, owner), files

    async def _in_env(self, spec: AppSpec, owner: str) -> AppSpec:
        """The spec under the name that it has in its named environment.

        Raises:
            Refusal: 404 when there is no such environment, 400 when an app of another one would be named like that.
        """
        envs = self._store.named_environments
        if not await envs.exists(owner, spec.env):
            raise await self._control.no_env(owner, spec.env)
        name = name_in_env(spec.name, spec.env)
        if not is_app_name(name):
            raise bad_request(f"App name {name!r}: use {APP_NAME_RULE}.")
        if (other := env_of(name)) != spec.env and await envs.exists(owner, other):
            raise bad_request(f"Apps of the environment {other!r} are named like {name!r}; deploy with --env {other}.")
        return replace(spec, name=name)

    async def _missing_secrets(self, owner: str, spec: AppSpec) -> list[str]:
        """Those that the app lists and nobody has set."""
        known = {secret.name for secret in await self._store.secrets.list(owner, spec.env)}
        return [name for name in spec.secrets or () if name not in known]

    async def _built_anew(self, app: str, spec: AppSpec) -> str:
        """Which of the environments of these inputs the app uses already: a deploy does not go back to an older one.

        One that an owner's secrets opened the way to is that owner's: others would get what is kept from them.
        """
        environment = spec.environment
        try:
            own = f"{app.partition('/')[0]}/{spec.env}" if placeholders(environment) else ""
        except BadRequirement as error:
            raise bad_request(str(error)) from None
        alias = await self._store.apps.get(app)
        if alias is None or alias.revision is None:
            return own
        serving = await self._store.apps.revision(app, alias.revision)
        used = serving.spec.environment if serving is not None else environment
        try:
            same = environment_key(replace(environment, built_anew=used.built_anew)) == environment_key(used)
        except BadRequirement as error:
            raise bad_request(str(error)) from None
        return used.built_anew if same else own

    async def _store_revision(
        self, app: str, spec: AppSpec, files: tuple[BundleFile, ...], message: str | None
    ) -> RevisionRecord:
        try:
            environment = environment_key(spec.environment)
        except BadRequirement as error:
            raise bad_request(str(error)) from None
        bundles = self._store.bundles
        hashes = sorted({file.sha256 for file in files})
        missing = await asyncio.to_thread(bundles.missing, hashes)
        if missing:
            raise missing_objects(files, missing)
        asked = parse(spec.environment.requirements, spec.environment.constraints, spec.environment.exclude_newer)
        sent = {wanted.uploaded[0]: wanted.shown for wanted in asked.wanted if wanted.uploaded is not None}
        if missing := await asyncio.to_thread(bundles.missing, sorted(sent)):
            raise Refusal(409, f"The files of {sent[missing[0]]} were not uploaded; upload them first.")
        revision = RevisionRecord(
            app=app,
            revision=uuid.uuid4().hex[:12],
            spec=spec,
            bundle_hash=bundles.bundle_hash(files),
            files=files,
            environment_key=environment,
            state=RevisionState.BUILDING,
            created_at_ms=int(time.time() * 1000),
            message=message,
        )
        await self._store.apps.put_revision(revision)
        return revision

    @describe(200, events(shapes.BuildLine, shapes.BuildState))
    async def events(self, request: Request) -> Response:
        """The build's lines from the beginning, then its state, then the end."""
        app = await self._control.owned_app(request)
        revision = await self._store.apps.revision(app, request.path_params["revision"])
        if revision is None:
            raise Refusal(404, f'"{app}" has no revision "{request.path_params["revision"][:80]}".')
        return self._control.streams.answer(self._story(revision, self._control.urls(request, app)))

    def _story(self, revision: RevisionRecord, urls: Urls) -> Story:
        async def story(events: Events) -> None:
            key = revision.environment_key
            current: RevisionRecord | None = revision
            after = "0"
            subscription = await self._store.subscribe({keys.channel_environment(key): events.note})
            try:
                while current is not None:
                    # The state was read before the lines: a final state has all of its lines behind it.
                    while lines := await self._store.environments.read_log(key, after):
                        for after, line in lines:
                            await events.send(wire.build_line(after, line))
                    if current.state is not RevisionState.BUILDING:
                        await events.send(wire.state_event(current, urls, await self._notes(current)))
                        return
                    if not await events.wait(_LOOK_SECONDS):
                        return
                    current = await self._store.apps.revision(revision.app, revision.revision)
            finally:
                await subscription.close()

        return story

    async def _notes(self, revision: RevisionRecord) -> dict[str, Any]:
        """What the user should know: how the environment was resolved, and that a CPU stands in for a GPU."""
        notes = wire.environment_notes(await self._store.environments.get(revision.environment_key))
        spec = revision.spec
        hosts = [host for host in await self._store.hosts.list() if host.alive]
        real = any(
            _offers.serves(name, host, spec.num_gpus, spec.gpu_memory_mb)
            for name in spec.machine_types
            for host in hosts
        )
        stand_in = next((n for n in spec.machine_types for h in hosts if _offers.stands_in(n, h)), None)
        if stand_in is not None and not real:
            notes["cpu_fallback"] = f"no host offers {stand_in}; a CPU stands in for it, which is slow"
        return notes


def _flag(body: dict[str, Any], name: str) -> bool:
    value = body.get(name, False)
    if not isinstance(value, bool):
        raise bad_request(f'"{name}" must be true or false.')
    return value


def _message(body: dict[str, Any]) -> str | None:
    value = body.get("message")
    if value is not None and (not isinstance(value, str) or len(value) > 2000):
        raise bad_request('"message" must be text of at most 2000 characters.')
    return value
