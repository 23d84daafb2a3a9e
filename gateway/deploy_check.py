"""What a deploy would change, told before it happens. Pure."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fal._spec import AppSpec, BundleFile, HealthCheckSpec, ScalingSpec

from scheduler.store.records import AppRecord, RevisionRecord

Json = dict[str, Any]

#: Settings of a revision that a user has written, by the names under which they are written.
_SETTINGS = (
    *("machine_types", "num_gpus", "exposed_port", "max_multiplexing", "startup_timeout"),
    *("termination_grace_period_seconds", "cancel_grace_seconds", "skip_retry_conditions", "retry_config", "secrets"),
)


def changes(
    alias: AppRecord | None,
    serving: RevisionRecord | None,
    spec: AppSpec,
    files: tuple[BundleFile, ...],
    *,
    reset_scale: bool,
) -> list[Json]:
    """Each setting, its value now (None for a new app) and after the deploy, in the order in which users think of them.

    A scaling setting that the alias keeps although the code says something else has that in ``ignored``.
    """
    kept = alias is not None and not reset_scale
    rows = [_row("auth", alias.auth if alias else None, spec.auth or (alias.auth if alias else "private"))]
    before, after = _settings(serving.spec) if serving is not None else {}, _settings(spec)
    rows += [_row(name, before.get(name), after[name]) for name in after]
    known, wanted = asdict(alias.scaling) if alias is not None else {}, asdict(spec.scaling)
    for name in ScalingSpec.__dataclass_fields__:
        row = _row(name, known.get(name), known[name] if kept else wanted[name])
        if kept and known[name] != wanted[name]:
            row["ignored"] = wanted[name]
        rows.append(row)
    return [*rows, *_files(serving.files if serving is not None else (), files)]


def _settings(spec: AppSpec) -> Json:
    environment = spec.environment
    chosen: Json = {
        "class": f"{spec.entry_file}::{spec.class_name}",
        "endpoints": [endpoint.path for endpoint in spec.endpoints],
        "python_version": environment.python_version,
        "requirements": [line for layer in environment.requirements for line in layer],
        "constraints": list(environment.constraints),
        "exclude_newer": environment.exclude_newer,
    }
    check = spec.health_check
    chosen["health_check"] = None if check is None else f"{check.method} {check.path}, {_rest_of(check)}"
    for name in _SETTINGS:
        value = getattr(spec, name)
        chosen[name] = list(value) if isinstance(value, tuple) else value
    return chosen


def _rest_of(check: HealthCheckSpec) -> str:
    rest = asdict(check)
    return ", ".join(f"{name} {value}" for name, value in rest.items() if name not in ("path", "method"))


def _files(before: tuple[BundleFile, ...], after: tuple[BundleFile, ...]) -> list[Json]:
    old, new = ({file.path: (file.sha256, file.executable) for file in files} for files in (before, after))
    rows = []
    for path in sorted(old.keys() | new.keys()):
        if old.get(path) != new.get(path):
            what = "added" if path not in old else "removed" if path not in new else "changed"
            rows.append(_row(f"file {path}", None, what))
    return rows


def _row(setting: str, now: Any, after: Any) -> Json:
    return {"setting": setting, "now": now, "after": after}
