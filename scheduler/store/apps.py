"""Apps: the alias a name stands for, its revisions, sessions of ephemeral apps, a look at demand and supply."""

from __future__ import annotations

import asyncio
import dataclasses
import uuid
from typing import Any

import orjson
from fal._spec import AppSpec, Auth, BundleFile, EndpointSpec, EnvironmentSpec, HealthCheckSpec, ScalingSpec

from . import keys
from .connection import Arg, Redis
from .errors import NotFound
from .records import AppRecord, AppSeen, RevisionRecord, RevisionState
from .requests import Requests
from .scripts import SCRIPTS
from .workers import Workers, worker_record

Fields = dict[str, str]


def fields_of(reply: list[bytes]) -> Fields:
    """A flat HGETALL reply as text."""
    return {reply[i].decode(): reply[i + 1].decode() for i in range(0, len(reply), 2)}


class Apps:
    """Verbs on apps and their revisions."""

    def __init__(self, redis: Redis, requests: Requests, workers: Workers) -> None:
        self._redis = redis
        self._requests = requests
        self._workers = workers

    # --- revisions ------------------------------------------------------------------------------------------------

    async def put_revision(self, r: RevisionRecord) -> None:
        """Stores a version; its creation time is Redis' now.

        Raises:
            StoreUnavailable, StoreFull.
        """
        fields: Fields = {
            "spec": orjson.dumps(r.spec.to_json()).decode(),
            "bundle_hash": r.bundle_hash,
            "files": orjson.dumps([dataclasses.asdict(file) for file in r.files]).decode(),
            "environment_key": r.environment_key,
            "state": r.state,
        }
        fields |= {name: text for name in ("error", "message", "openapi") if (text := getattr(r, name)) is not None}
        await SCRIPTS["put_revision"](self._redis, r.app, r.revision, name=r.revision, rest=_flat(fields))

    async def revision(self, app: str, revision: str) -> RevisionRecord | None:
        """One version, or None."""
        fields = fields_of(await self._redis.command("HGETALL", keys.revision(app, revision)))
        return _revision_record(app, revision, fields) if fields else None

    async def revisions(self, app: str) -> list[RevisionRecord]:
        """All versions, oldest first."""
        names = await self._redis.command("ZRANGE", keys.revisions(app), 0, -1)
        found = await asyncio.gather(*(self.revision(app, name.decode()) for name in names))
        return [record for record in found if record is not None]

    async def drop_revision(self, app: str, revision: str) -> bool:
        """Takes a version off the list; workers that still serve it may finish.

        Returns:
            False when the app's name points at it.

        Raises:
            NotFound: no such version.
        """
        done = await SCRIPTS["drop_revision"](self._redis, app, revision, name=revision)
        if done == 0:
            raise NotFound(f"{app} has no revision {revision}.")
        return bool(done == 1)

    async def set_revision_state(self, app: str, revision: str, state: RevisionState, error: str | None = None) -> None:
        """Moves a version on; ``error`` says why a build failed."""
        await self._set_on_revision(app, revision, {"state": state, "error": error or ""})

    async def set_openapi(self, app: str, revision: str, text: str) -> None:
        """Keeps the OpenAPI document that a worker of this version reported."""
        await self._set_on_revision(app, revision, {"openapi": text})

    async def _set_on_revision(self, app: str, revision: str, fields: Fields) -> None:
        done = await SCRIPTS["change_revision"](self._redis, app, revision, rest=_flat(fields))
        if not done:
            raise NotFound(f"{app} has no revision {revision}.")

    async def startup_failed(self, app: str, revision: str, error: str) -> int:
        """A worker's import or ``setup()`` failed; returns how often in a row by now."""
        count: int = await SCRIPTS["startup_failed"](self._redis, app, revision, why=error, token=uuid.uuid4().hex)
        return count

    async def startup_succeeded(self, app: str, revision: str, openapi: str, stages: dict[str, float]) -> None:
        """A worker is ready: failures are forgotten, its OpenAPI document and what its start took are kept."""
        learned = {
            "startup_failures": "0",
            "last_startup_error": "",
            "openapi": openapi,
            "last_start": orjson.dumps(stages).decode(),
        }
        await self._set_on_revision(app, revision, learned)

    async def crash_streak_ended(self, app: str, revision: str) -> bool:
        """A worker has served its first request; returns whether its revision's workers had been crashing."""
        return bool(await SCRIPTS["end_crash_streak"](self._redis, app, revision))

    async def gpu_peak(self, app: str, revision: str, mb: int) -> bool:
        """A worker used ``mb`` MiB of one GPU; returns whether that is more than was known of its revision."""
        return bool(await SCRIPTS["raise_gpu_peak"](self._redis, app, revision, mb=mb))

    async def suspension_tried(self, app: str, revision: str, refusal: str) -> None:
        """A worker of it was suspended and came back, or (``refusal``) why that cannot be done."""
        await self._set_on_revision(app, revision, {"suspension": refusal})

    # --- the alias ------------------------------------------------------------------------------------------------

    async def point(
        self,
        app: str,
        revision: str,
        *,
        auth: Auth | None,
        scaling: ScalingSpec | None,
        ephemeral: bool,
        session_ttl_s: int | None = None,
    ) -> AppRecord:
        """Creates the app's name or moves it to ``revision``, and wakes the scheduler.

        Args:
            auth, scaling: None keeps what the alias has; a new alias is private (ephemeral: public) and scales by
                the defaults.
            session_ttl_s: seconds until an ephemeral app is taken away unless ``touch_session`` renews it.
        """
        if session_ttl_s is not None:
            await self.touch_session(app, session_ttl_s)
        await asyncio.gather(
            self._redis.command("SADD", keys.apps(), app), self._redis.command("ZREM", keys.apps_retired(), app)
        )
        reply = await SCRIPTS["point"](
            self._redis,
            app,
            revision=revision,
            auth=auth or "",
            scaling=_scaling_text(scaling) if scaling else "",
            ephemeral=int(ephemeral),
            default_auth="public" if ephemeral else "private",
            default_scaling=_scaling_text(ScalingSpec()),
        )
        return _app_record(app, fields_of(reply))

    async def get(self, app: str) -> AppRecord | None:
        """The alias, or None when no app has this name."""
        fields = fields_of(await self._redis.command("HGETALL", keys.alias(app)))
        return _app_record(app, fields) if fields else None

    async def names(self) -> list[str]:
        """All apps, those deleted in the last two days included: they may have workers to stop, leases to end and
        webhooks to deliver."""
        alive, retired = await asyncio.gather(
            self._redis.command("SMEMBERS", keys.apps()), self._redis.command("ZRANGE", keys.apps_retired(), 0, -1)
        )
        return sorted({name.decode() for name in (*alive, *retired)})

    async def set_scaling(self, app: str, scaling: ScalingSpec) -> None:
        """Changes the scaling settings.

        Raises:
            NotFound: no such app.
        """
        await self._change(app, "scaling", _scaling_text(scaling))

    async def set_auth(self, app: str, auth: Auth) -> None:
        """Changes who may call the app.

        Raises:
            NotFound: no such app.
        """
        await self._change(app, "auth", auth)

    async def _change(self, app: str, field: str, value: str) -> None:
        if not await SCRIPTS["change_alias"](self._redis, app, field=field, value=value):
            raise NotFound(f"No app {app}.")

    async def touch_session(self, app: str, ttl_s: int) -> None:
        """An ephemeral app lives ``ttl_s`` seconds more."""
        await SCRIPTS["touch_session"](self._redis, name=app, ttl_ms=ttl_s * 1000)

    async def expired_sessions(self) -> list[str]:
        """Ephemeral apps whose session was not renewed: to be deleted."""
        return [name.decode() for name in await SCRIPTS["expired_sessions"](self._redis)]

    async def delete(self, app: str) -> bool:
        """Takes the name away: waiting requests end with an error, workers are asked to drain, the rest expires.

        Safe to call again when it was interrupted. Returns False if there was no such app.
        """
        # Before the name is free: of an app that is made anew at once, the key must stay listed.
        await self._redis.command("SREM", keys.api_keys(), app)
        existed = await SCRIPTS["retire_app"](self._redis, app)
        await SCRIPTS["retire_name"](self._redis, name=app)
        await self._redis.command("SREM", keys.apps(), app)
        await self._requests.fail_deleted(app)
        for worker in await self._workers.list(app):
            await self._workers.request_stop(app, worker.worker_id, "drain", "the app was deleted")
        await self._redis.command("ZREM", keys.sessions(), app)
        return bool(existed)

    async def observe(self, app: str, epoch: int | None = None) -> AppSeen:
        """One atomic look at the app's demand and workers; later changes wake the scheduler again.

        With a leader's ``epoch`` it also refuses, from now on, what an earlier leader says about the app.

        Raises:
            StaleLeader: a later leader has looked. StoreUnavailable.
        """
        reply = await SCRIPTS["observe"](self._redis, app, by_epoch="" if epoch is None else epoch)
        now, queued, delayed, in_progress, oldest, due = reply[:6]
        workers = tuple(worker_record(app, fields_of(fields)) for fields in reply[6:])
        return AppSeen(
            app=app,
            now_ms=now,
            queued=queued,
            delayed=delayed,
            in_progress=in_progress,
            oldest_queued_at_ms=oldest if oldest >= 0 else None,
            workers=workers,
            next_delayed_at_ms=due if due >= 0 else None,
        )

    async def say_blocked(self, app: str, reason: str) -> None:
        """There is no place for the app's next worker; forgotten after five seconds unless it is said again."""
        await self._redis.command("SET", keys.blocked(app), reason, "PX", 5000)

    async def blocked(self, app: str) -> str | None:
        """Why there is no place for the app's next worker, or None when there is or nobody needs one."""
        reason = await self._redis.command("GET", keys.blocked(app))
        return reason.decode() if reason is not None else None

    async def not_blocked(self, app: str) -> None:
        """There is a place again."""
        await self._redis.command("DEL", keys.blocked(app))

    async def list(self) -> list[AppRecord]:
        """All apps that exist, by name."""
        names = sorted(name.decode() for name in await self._redis.command("SMEMBERS", keys.apps()))
        found = await asyncio.gather(*(self.get(name) for name in names))
        return [record for record in found if record is not None]


def _flat(fields: Fields) -> list[Arg]:
    return [value for item in fields.items() for value in item]


def _scaling_text(scaling: ScalingSpec) -> str:
    return orjson.dumps(dataclasses.asdict(scaling)).decode()


def _app_record(app: str, fields: Fields) -> AppRecord:
    auth: Any = fields["auth"]
    return AppRecord(
        app=app,
        revision=fields.get("revision"),
        auth=auth,
        scaling=_known(ScalingSpec, orjson.loads(fields["scaling"])),
        ephemeral=fields.get("ephemeral") == "1",
        created_at_ms=int(fields["created_at"]),
    )


def _revision_record(app: str, revision: str, fields: Fields) -> RevisionRecord:
    return RevisionRecord(
        app=app,
        revision=revision,
        spec=_spec(orjson.loads(fields["spec"])),
        bundle_hash=fields["bundle_hash"],
        files=tuple(_known(BundleFile, file) for file in orjson.loads(fields["files"])),
        environment_key=fields["environment_key"],
        state=RevisionState(fields["state"]),
        created_at_ms=int(fields["created_at"]),
        error=fields.get("error") or None,
        message=fields.get("message") or None,
        openapi=fields.get("openapi") or None,
        startup_failures=int(fields.get("startup_failures", "0")),
        last_startup_error=fields.get("last_startup_error") or None,
        last_startup_failure_at_ms=_number(fields, "last_startup_failure_at"),
        crash_streak=_number(fields, "crash_streak") or 0,
        last_crash=fields.get("last_crash") or None,
        last_crash_at_ms=_number(fields, "last_crash_at"),
        last_start=orjson.loads(fields.get("last_start") or "{}"),
        gpu_peak_mb=_number(fields, "gpu_peak") or 0,
        suspension=fields.get("suspension"),
    )


def _number(fields: Fields, name: str) -> int | None:
    return int(fields[name]) if name in fields else None


def _known(kind: type[Any], raw: dict[str, Any]) -> Any:
    """The dataclass from its JSON form; fields that a newer release wrote are left out, lists become tuples."""
    names = {field.name for field in dataclasses.fields(kind)}
    return kind(**{name: _frozen(value) for name, value in raw.items() if name in names})


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value


def _spec(raw: dict[str, Any]) -> AppSpec:
    check = raw.get("health_check")
    parts = {
        "environment": _known(EnvironmentSpec, raw["environment"]),
        "scaling": _known(ScalingSpec, raw["scaling"]),
        "endpoints": tuple(_known(EndpointSpec, endpoint) for endpoint in raw["endpoints"]),
        "health_check": _known(HealthCheckSpec, check) if check is not None else None,
    }
    spec: AppSpec = _known(AppSpec, raw | parts)
    # free-form JSON keeps its lists
    return dataclasses.replace(spec, metadata=raw.get("metadata", {}), retry_config=raw.get("retry_config", {}))
