"""Turns an order into an assignment: finds the environment, lays out the bundle, collects the app's settings.

Whatever starts supervisors uses this: the host agent today. Leaves building environments to the jobs service.
"""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from fal._platform import client_environ
from fal._spec import AppSpec, HealthCheckSpec

from envbuilder import BuildSettings, Environment, EnvironmentGone, find, hold
from gpu_worker import lessons
from gpu_worker.assignment import Assignment
from gpu_worker.settings import AgentSettings
from scheduler.store import Store
from scheduler.store.errors import StoreFull
from scheduler.store.records import RevisionRecord, WorkerRecord

#: What says which key, and where to: with one of them given, the rest is its giver's.
_ABOUT_KEYS = frozenset(
    {"FAL_KEY", "FAL_KEY_ID", "FAL_KEY_SECRET", "FAL_RUN_HOST", "FAL_QUEUE_RUN_HOST", "KEEPWARM_URL"}
)
#: Names by which callers on this machine reach a platform that listens on loopback.
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


class CannotStart(Exception):
    """A worker cannot be started here; the message says why."""


class EnvironmentMissing(CannotStart):
    """The environment is not on this host (any more)."""


async def prepare(
    store: Store, worker: WorkerRecord, settings: AgentSettings, builds: BuildSettings, held: ExitStack
) -> Assignment:
    """Everything that a supervisor needs to start ``worker`` at once.

    Args:
        held: keeps the environment from being evicted until it is closed.

    Raises:
        EnvironmentMissing: it has to be built (again).
        CannotStart: no such revision, its files are not in the store, or its secrets cannot be unsealed.
        StoreUnavailable: Redis does not answer.
    """
    began = time.monotonic()
    revision = await store.apps.revision(worker.app, worker.revision)
    if revision is None:
        raise CannotStart(f"{worker.app} has no revision {worker.revision}")
    environment = find(revision.environment_key, builds)
    if environment is None:
        raise EnvironmentMissing(f"environment {revision.environment_key} is not on this host")
    try:
        held.enter_context(hold(environment))
    except EnvironmentGone as error:
        raise EnvironmentMissing(str(error)) from error
    try:
        bundle = await asyncio.to_thread(store.bundles.materialise, revision.bundle_hash, revision.files)
    except (OSError, ValueError, KeyError, StoreFull) as error:
        raise CannotStart(f"the files of revision {worker.revision} cannot be laid out: {error}") from error
    secrets, alias = await asyncio.gather(_secrets(store, revision), store.apps.get(worker.app))
    scaling = alias.scaling if alias is not None else revision.spec.scaling
    made = _assignment(worker, revision, environment, bundle, settings, began)
    own_key = await _own_key(store, worker.app) if _has_own_key(secrets, settings) else None
    return replace(
        made,
        secrets=secrets if own_key is None else {**secrets, "FAL_KEY": own_key},
        platform_environ=platform_environ(settings, own_key is not None),
        request_timeout=scaling.request_timeout,
    )


def _has_own_key(secrets: dict[str, str], settings: AgentSettings) -> bool:
    """Unless its owner or the operator gives it one, or another address to take it to; never without an address."""
    given = _ABOUT_KEYS & (secrets.keys() | settings.passed_environ.keys())
    return not given and settings.platform_url is not None


async def _own_key(store: Store, app: str) -> str | None:
    try:
        return await store.keys.of_app(app)
    except (OSError, ValueError) as error:
        raise CannotStart(str(error)) from error


async def _secrets(store: Store, revision: RevisionRecord) -> dict[str, str]:
    """As they are now: a worker that starts later may get others."""
    owner = revision.app.partition("/")[0]
    try:
        return await store.secrets.values(owner, revision.spec.env, revision.spec.secrets)
    except (OSError, ValueError) as error:
        raise CannotStart(str(error)) from error


def _assignment(
    worker: WorkerRecord,
    revision: RevisionRecord,
    environment: Environment,
    bundle: Path,
    settings: AgentSettings,
    began: float,
) -> Assignment:
    spec, data = revision.spec, settings.data_dir
    return Assignment(
        app=worker.app,
        worker_id=worker.worker_id,
        revision=worker.revision,
        machine_type=worker.machine_type,
        gpu_ids=worker.gpu_ids,
        cpu_fallback_for=worker.cpu_fallback_for,
        python=str(environment.python),
        environment_dir=str(environment.path),
        bundle_dir=str(bundle),
        files_dir=str(data / "incoming" / worker.worker_id),
        home_dir=str(settings.app_data or data / "data"),
        sdk_dir=str(settings.sdk_dir),
        data_dir=str(data),
        redis_url=settings.redis_url,
        entry_file=spec.entry_file,
        class_name=spec.class_name,
        ordered_at=began,
        parent_pid=os.getpid(),
        max_multiplexing=spec.max_multiplexing,
        startup_timeout=spec.startup_timeout,
        termination_grace=spec.termination_grace_period_seconds,
        cancel_grace=spec.cancel_grace_seconds,
        skip_retry_conditions=tuple(spec.skip_retry_conditions),
        retry_config=dict(spec.retry_config),
        passed_environ=dict(settings.passed_environ),
        storage_hosts=storage_hosts(settings),
        stages={"environment": time.monotonic() - began},
        ping_seconds=settings.ping_seconds,
        health_check=_health_check(spec),
        health_seconds=settings.health_seconds,
        files=dict(settings.files),
        recycle_after_requests=spec.recycle_after_requests,
        recycle_after_seconds=spec.recycle_after_seconds,
        recycle_above_mb=spec.recycle_above_mb,
        for_calls=spec.for_calls,
        setup_function=spec.setup_function,
        exposed_port=spec.exposed_port,
        runner_tasks=settings.runner_tasks,
        runner_memory=settings.runner_memory,
        simulated_gpus=settings.simulated_gpus,
        suspension_proven=revision.suspension == "",
        lessons_file=str(lessons.file_of(data, worker, environment.key, revision.bundle_hash)),
    )


def _health_check(spec: AppSpec) -> HealthCheckSpec | None:
    """Nobody is expected to be well before it had the time to start."""
    check = spec.health_check
    if check is None:
        return None
    return replace(check, start_period_seconds=max(check.start_period_seconds, spec.startup_timeout))


def platform_environ(settings: AgentSettings, with_own_key: bool) -> dict[str, str]:
    """The variables by which an app calls the platform that runs it; empty where no address is known.

    Never the address that a caller's Host header says: the app's own key goes where these point. Without that key the
    official client stays what it is everywhere, for the key that it is given may be one for fal's cloud.
    """
    url = settings.platform_url
    return client_environ(url, official=with_own_key) if url is not None else {}


def storage_hosts(settings: AgentSettings) -> tuple[str, ...]:
    """``host[:port]`` values under which the platform serves its own files."""
    hosts: dict[str, None] = {}
    for parts in (urlsplit(url) for url in (settings.public_url, settings.local_url) if url):
        names = _LOOPBACK if parts.hostname in ("127.0.0.1", "localhost", "::1") else (parts.hostname or "",)
        hosts |= dict.fromkeys(f"{name}:{parts.port}" if parts.port else name for name in names if name)
    return tuple(hosts)
