"""The JSON that the outside sees: the queue protocol's answers, error bodies and the records of the control API.

The only place that makes these shapes; ``shapes`` has the types of the control API. Pure.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from signal import Signals
from typing import Any, overload

import orjson
from fal._spec import ScalingSpec

from scheduler.store.back_off import next_start_ms
from scheduler.store.records import (
    ApiKeyRecord,
    AppRecord,
    AppSeen,
    DeadLetter,
    DeadWebhook,
    EnvironmentRecord,
    HostRecord,
    LogEntry,
    NamedEnvironmentRecord,
    Outcome,
    RequestRecord,
    RequestState,
    RevisionRecord,
    SecretRecord,
    Submitted,
    WorkerRecord,
)

from . import shapes

Json = dict[str, Any]


def dumps(value: object) -> bytes:
    """JSON bytes; keys that are no text are written as text, what is no JSON as its string."""
    return orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS)


def event(value: object) -> bytes:
    """One server-sent event whose data is JSON."""
    return b"data: " + dumps(value) + b"\n\n"


#: Every data event is parsed as JSON by clients, so that signs of life must be comments.
KEEP_ALIVE = b": keep-alive\n\n"


def error_body(detail: str, error_type: str | None = None) -> bytes:
    """``{"detail", "error_type"}``; the type only where there is one."""
    return dumps({"detail": detail} if error_type is None else {"detail": detail, "error_type": error_type})


def iso(at: float) -> str:
    """Unix seconds as ISO 8601 in UTC."""
    return datetime.fromtimestamp(at, UTC).isoformat()


@overload
def _iso_ms(at_ms: int) -> str: ...
@overload
def _iso_ms(at_ms: int | None) -> str | None: ...
def _iso_ms(at_ms: int | None) -> str | None:
    return None if at_ms is None else iso(at_ms / 1000)


# --- the queue --------------------------------------------------------------------------------------------------------

NOT_FOUND = dumps({"status": "NOT_FOUND"})
ALREADY_COMPLETED = dumps({"status": "ALREADY_COMPLETED"})
CANCELLATION_REQUESTED = dumps({"status": "CANCELLATION_REQUESTED"})
IN_PROGRESS = error_body("Request is still in progress")


def request_urls(base: str, app: str, request_id: str) -> Json:
    """The three URLs of a queued request; ``base`` is where the queue's paths begin."""
    response = f"{base}/{app}/requests/{request_id}"
    return {"response_url": response, "status_url": f"{response}/status", "cancel_url": f"{response}/cancel"}


def submitted(answer: Submitted, urls: Json) -> bytes:
    """Answer to a submit."""
    return dumps(
        {
            "status": "IN_QUEUE",
            "request_id": answer.request_id,
            "gateway_request_id": answer.request_id,
            **urls,
            "queue_position": answer.position,
            "logs": None,
            "metrics": {},
        }
    )


def status(record: RequestRecord, urls: Json, logs: Sequence[LogEntry] | None) -> tuple[int, Json]:
    """HTTP status and body for a request's state: 200 only when it has ended, however it ended."""
    body: Json = {"status": _status_name(record.state), "request_id": record.request_id, **urls}
    if record.state is RequestState.IN_QUEUE:
        body["queue_position"] = record.position or 0
    body["logs"] = None if logs is None else [request_log(entry) for entry in logs]
    outcome = record.outcome
    seconds = outcome.inference_seconds if outcome is not None else None
    body["metrics"] = {} if seconds is None else {"inference_time": seconds}
    if record.state in (RequestState.ERROR, RequestState.CANCELLED):
        code = f"Invalid status code: {outcome.status}" if outcome is not None else "The request failed"
        body["error"] = record.error or _platforms_words(outcome) or code
        if record.error_type is not None:
            body["error_type"] = record.error_type
    return (200 if record.state.terminal else 202), body


def _platforms_words(outcome: Outcome | None) -> str | None:
    """The sentence of an error that is the platform's own; what apps answer is theirs and stays in the result."""
    if outcome is None or outcome.error_type is None:
        return None
    try:
        detail = orjson.loads(outcome.body)["detail"]
    except (ValueError, TypeError, KeyError):
        return None
    return detail if isinstance(detail, str) else None


def _status_name(state: RequestState) -> str:
    return "COMPLETED" if state.terminal else state.value


def request_log(entry: LogEntry) -> Json:
    """A log line as the queue's status shows it."""
    return {
        "message": entry.message,
        "timestamp": iso(entry.at),
        "level": entry.level,
        "source": "USER",
        "labels": {},
    }


# --- the control API --------------------------------------------------------------------------------------------------


def app(
    record: AppRecord, urls: shapes.Urls, seen: AppSeen | None = None, revision: RevisionRecord | None = None
) -> shapes.App:
    """An alias with its settings and, when asked for, what it is doing."""
    body: shapes.App = {
        "app": record.app,
        "revision": record.revision,
        "auth": record.auth,
        "ephemeral": record.ephemeral,
        "scaling": record.scaling,
        "created_at": _iso_ms(record.created_at_ms),
        "urls": urls,
    }
    if seen is not None:
        body["queue"] = {"queued": seen.queued, "delayed": seen.delayed, "in_progress": seen.in_progress}
        body["workers"] = [worker(item) for item in seen.workers]
    if revision is not None:
        body["class_name"], body["entry_file"] = revision.spec.class_name, revision.spec.entry_file
        body["machine_types"] = list(revision.spec.machine_types)
        body["endpoints"] = endpoints(revision, urls)
        body["last_startup_error"] = revision.last_startup_error
        body["startup_failures"] = revision.startup_failures
        body["health"] = "UNHEALTHY" if revision.startup_failures or revision.crash_streak else "OK"
        body["last_start"] = revision.last_start
        body["gpu_memory_mb"] = revision.spec.gpu_memory_mb
        body["gpu_peak_mb"] = revision.gpu_peak_mb or None
        body["last_crash"] = revision.last_crash if revision.crash_streak else None
        next_start = next_start_ms(revision)
        waits = seen is not None and next_start > seen.now_ms
        body["next_start_at"] = _iso_ms(next_start) if waits else None
    return body


def scaling(settings: ScalingSpec) -> Json:
    """Scaling settings by name."""
    return asdict(settings)


def endpoints(revision: RevisionRecord, urls: shapes.Urls) -> dict[str, shapes.Urls]:
    """Path of each HTTP endpoint -> its two URLs."""
    paths = [endpoint.path for endpoint in revision.spec.endpoints if not endpoint.is_websocket]
    return {
        path: urls if path == "/" else {"sync": urls["sync"] + path, "queue": urls["queue"] + path} for path in paths
    }


def revision(record: RevisionRecord, current: bool) -> shapes.Revision:
    """A version of an app; ``current`` when the alias points at it."""
    return {
        "app": record.app,
        "revision": record.revision,
        "state": record.state,
        "current": current,
        "created_at": _iso_ms(record.created_at_ms),
        "message": record.message,
        "error": record.error,
        "environment_key": record.environment_key,
        "bundle_hash": record.bundle_hash,
        "class_name": record.spec.class_name,
        "entry_file": record.spec.entry_file,
        "machine_types": list(record.spec.machine_types),
        "last_startup_error": record.last_startup_error,
        "annotations": dict(record.spec.metadata.get("annotations") or {}),
    }


def running_request(record: RequestRecord) -> shapes.RunningRequest:
    """A request in progress."""
    return {
        "request_id": record.request_id,
        "worker_id": record.worker_id,
        "mode": record.mode,
        "attempt": record.attempt,
        "submitted_at": _iso_ms(record.submitted_at_ms),
        "started_at": _iso_ms(record.started_at_ms),
    }


def worker(record: WorkerRecord) -> shapes.Worker:
    """A worker, which users know as a runner."""
    return {
        "app": record.app,
        "worker_id": record.worker_id,
        "revision": record.revision,
        "host": record.host,
        "state": record.state,
        "machine_type": record.machine_type,
        "device": record.device,
        "cpu_fallback_for": record.cpu_fallback_for,
        "gpu_ids": list(record.gpu_ids),
        "gpu_memory_mb": record.gpu_memory_mb,
        "retiring": record.retiring,
        "created_at": _iso_ms(record.created_at_ms),
        "ready_at": _iso_ms(record.ready_at_ms),
        "idle_since": _iso_ms(record.idle_since_ms),
        "in_flight": record.in_flight,
        "served": record.served,
        "reason": record.reason,
        "stages": dict(record.stages),
        "start_kind": record.start_kind,
    }


def command_said(kind: str, data: bytes) -> dict[str, Any]:
    """What a command beside a worker said, or how it ended."""
    if kind == "exit":
        return {"type": "exit", "code": int(data)}
    return {"type": kind, "data": base64.b64encode(data).decode()}


def letter(record: DeadLetter) -> shapes.Letter:
    """A request that was given up, without its input."""
    return {
        "app": record.app,
        "request_id": record.request_id,
        "error_type": record.error_type,
        "error": record.error,
        "attempts": record.attempts,
        "crashes": record.crashes,
        "exit_code": record.exit_code,
        "signal": _signal_name(record.exit_code),
        "worker_id": record.worker_id,
        "host": record.host,
        "submitted_at": _iso_ms(record.submitted_at_ms),
        "started_at": _iso_ms(record.started_at_ms),
        "died_at": _iso_ms(record.died_at_ms),
        "method": record.method,
        "path": record.path,
        "body_bytes": record.body_bytes,
        "priority": record.priority,
        "webhook": record.webhook,
        "replayed_as": record.replayed_as,
        "replayed_at": _iso_ms(record.replayed_at_ms),
    }


def letter_with_input(record: DeadLetter, body: bytes | None) -> shapes.LetterWithInput:
    """The same with what was last heard of it and its input; ``body`` is None when it is too large to be shown, and
    the JSON's when it is not text."""
    try:
        text = None if body is None else body.decode()
    except UnicodeDecodeError:
        text = None
    return {
        **letter(record),
        "last_words": record.words,
        "log": [{"timestamp": iso(e.at), "level": e.level, "message": e.message} for e in record.log],
        "query": record.query,
        "headers": [list(pair) for pair in record.headers],
        "body": text,
    }


def dead_webhook(record: DeadWebhook) -> shapes.DeadWebhook:
    """A delivery that was given up."""
    return {
        "app": record.app,
        "request_id": record.request_id,
        "url": record.url,
        "tries": record.tries,
        "given_up_at": _iso_ms(record.given_up_at_ms),
        "why": record.why,
        "status": "OK" if record.state is RequestState.COMPLETED else "ERROR",
    }


def _signal_name(exit_code: int | None) -> str | None:
    if exit_code is None or exit_code >= 0:
        return None
    try:
        return Signals(-exit_code).name
    except ValueError:
        return f"signal {-exit_code}"


def host(record: HostRecord) -> shapes.Host:
    """A machine and what it offers."""
    return {
        "host": record.host,
        "alive": record.alive,
        "machine_types": list(record.machine_types),
        "gpus": [
            {"index": index, "name": name, "memory_mb": memory, "machine_types": list(types)}
            for index, name, memory, types in record.gpus
        ],
        "cpu_fallback": record.cpu_fallback,
        "cpus": record.cpus,
        "memory_mb": record.memory_mb,
    }


def secret(record: SecretRecord) -> shapes.Secret:
    """A secret, of which nobody is told more."""
    return {"name": record.name, "exposed": record.exposed, "updated_at": _iso_ms(record.updated_at_ms)}


def named_environment(record: NamedEnvironmentRecord) -> shapes.NamedEnvironment:
    """A named environment."""
    return {"name": record.name, "description": record.description, "created_at": _iso_ms(record.created_at_ms)}


def key(record: ApiKeyRecord) -> shapes.Key:
    """An API key without its secret."""
    return {
        "key_id": record.key_id,
        "owner": record.owner,
        "name": record.name,
        "created_at": _iso_ms(record.created_at_ms),
        "revoked": record.revoked,
        "scope": record.scope,
    }


def log(entry: LogEntry) -> shapes.LogLine:
    """A line of an app's log."""
    return {
        "id": entry.id,
        "at": entry.at,
        "timestamp": iso(entry.at),
        "level": entry.level,
        "message": entry.message,
        "worker_id": entry.worker_id,
        "request_id": entry.request_id,
    }


def log_event(entry: LogEntry) -> bytes:
    """The same as an event."""
    data: shapes.LogEvent = {"type": "log", **log(entry)}
    return event(data)


def build_line(entry_id: str, line: str) -> bytes:
    """A line of a build as an event. The id of an entry begins with the millisecond at which it was written."""
    data: shapes.BuildLine = {"type": "log", "message": line, "at": int(entry_id.partition("-")[0]) / 1000}
    return event(data)


def state_event(record: RevisionRecord, urls: shapes.Urls, notes: Mapping[str, Any]) -> bytes:
    """The last event of a build: how it ended."""
    data: shapes.BuildState = {
        "type": "state",
        "state": record.state,
        "error": record.error,
        "urls": {**urls, "endpoints": endpoints(record, urls)},
        "notes": dict(notes),
    }
    return event(data)


def environment_notes(record: EnvironmentRecord | None) -> Json:
    """What the builder noted: which resolution was used, sizes, times."""
    return dict(record.notes) if record is not None else {}
