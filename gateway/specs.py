"""Checks what a deploy sends: the app's spec, its scaling and the list of its files.

One clear message for the first fault. Pure. Leaves requirement lines to ``envbuilder`` and machine types to the hosts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from fal._health_check import health_check_fault
from fal._limits import APP_NAME_RULE, is_app_name, number_fault
from fal._spec import AppSpec, BundleFile, ScalingSpec
from pydantic import TypeAdapter, ValidationError

from .errors import Refusal, bad_request, shown

_SPEC = TypeAdapter(AppSpec)
_FILES = TypeAdapter(tuple[BundleFile, ...])
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PYTHON = re.compile(r"3\.[0-9]{1,2}")
_MACHINE_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MOST_FILES = 20_000
_NUMBERS_OF_REVISIONS = (
    "num_gpus",
    "gpu_memory_mb",
    "recycle_after_requests",
    "recycle_after_seconds",
    "recycle_above_mb",
    "max_multiplexing",
    "startup_timeout",
    "termination_grace_period_seconds",
)


def read_spec(value: Any) -> AppSpec:
    """The spec of a revision.

    Raises:
        Refusal: 400 naming the first thing that is wrong.
    """
    try:
        spec = _SPEC.validate_python(value)
    except ValidationError as error:
        raise bad_request(f"The app's spec is not usable: {validation_text(error)}") from None
    _require(is_app_name(spec.name), f"App name {spec.name!r}: use {APP_NAME_RULE}")
    _require(spec.class_name.isidentifier(), f"Class name {spec.class_name!r} is no Python name")
    _require(
        not spec.setup_function or spec.setup_function.isidentifier(),
        f"setup_function {spec.setup_function!r} is no Python name",
    )
    _require(0 <= spec.exposed_port <= 65535, f"exposed_port {spec.exposed_port} is no port; use 1 to 65535")
    _require(is_safe_path(spec.entry_file), f"entry_file {spec.entry_file!r} is no path inside the bundle")
    version = spec.environment.python_version
    _require(bool(_PYTHON.fullmatch(version)), f"python_version {version!r}: write it as 3.11")
    _require(len(spec.machine_types) > 0, "machine_type is empty")
    for name in spec.machine_types:
        _require(bool(_MACHINE_TYPE.fullmatch(name)), f"machine_type {name!r} is no machine type")
    for setting in _NUMBERS_OF_REVISIONS:
        _require_number(setting, getattr(spec, setting))
    if spec.cancel_grace_seconds is not None:
        _require_number("cancel_grace_seconds", spec.cancel_grace_seconds)
    for endpoint in spec.endpoints:
        _require(endpoint.path.startswith("/"), f"Endpoint path {endpoint.path!r} must begin with /")
    if spec.health_check is not None:
        fault = health_check_fault(spec.health_check, [e.path for e in spec.endpoints if not e.is_websocket])
        _require(fault is None, fault or "")
    _require(_can_be_stored(spec.metadata), "metadata is too deep; nest at most 100 levels")
    check_scaling(spec.scaling)
    return spec


def check_scaling(scaling: ScalingSpec) -> ScalingSpec:
    """The same settings; 400 when they contradict each other or are out of range."""
    low, high = scaling.min_concurrency, scaling.max_concurrency
    for setting in ScalingSpec.__dataclass_fields__:
        if (value := getattr(scaling, setting)) is not None:
            _require_number(setting, value)
    _require(low <= high, f"min_concurrency ({low}) is above max_concurrency ({high})")
    return scaling


def read_files(value: Any, spec: AppSpec) -> tuple[BundleFile, ...]:
    """The files of a bundle.

    Raises:
        Refusal: 400 naming the first thing that is wrong.
    """
    try:
        files = _FILES.validate_python(value)
    except ValidationError as error:
        raise bad_request(f"The list of files is not usable: {validation_text(error)}") from None
    _require(0 < len(files) <= _MOST_FILES, f"The bundle has {len(files)} files; use 1 to {_MOST_FILES}")
    paths: set[str] = set()
    for file in files:
        _require(is_safe_path(file.path), f"File path {file.path!r} is no plain relative path")
        _require(bool(_SHA256.fullmatch(file.sha256)), f"{file.path}: sha256 must be 64 lower-case hex digits")
        _require(file.size >= 0, f"{file.path}: a size below zero")
        _require(file.path not in paths, f"{file.path} is listed twice")
        paths.add(file.path)
    folders = {path[:at] for path in paths for at, char in enumerate(path) if char == "/"}
    both = sorted(folders & paths)
    _require(not both, f"{both[0] if both else ''} is a file and a folder at once")
    _require(spec.entry_file in paths, f"entry_file {spec.entry_file!r} is not among the bundle's files")
    return files


def is_safe_path(path: str) -> bool:
    """A relative posix path that stays inside its folder, and that every file system can hold."""
    parts = path.split("/")
    return (
        0 < len(path) <= 1024
        and "\\" not in path
        and all(char.isprintable() for char in path)
        and all(part not in ("", ".", "..") and len(part.encode()) <= 255 for part in parts)
    )


def validation_text(error: ValidationError) -> str:
    """The first fault of a validation in one line."""
    first = error.errors(include_url=False, include_context=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or "the body"
    more = error.error_count() - 1
    tail = f" (and {more} more)" if more else ""
    return f"{where}: {first['msg']}, not {shown(first['input'])}{tail}."


def missing_objects(files: Sequence[BundleFile], missing: Sequence[str]) -> Refusal:
    """409: files that were never sent."""
    lost = set(missing)
    path = next(file.path for file in files if file.sha256 in lost)
    return Refusal(409, f"{len(lost)} files of the bundle were not uploaded, {path} among them; upload them first.")


def _can_be_stored(value: Any, levels: int = 100) -> bool:
    """Whether JSON that was read can be written: what writes it goes less deep than what reads it."""
    if not isinstance(value, (dict, list)):
        return True
    inner = value.values() if isinstance(value, dict) else value
    return levels > 0 and all(_can_be_stored(item, levels - 1) for item in inner)


def _require(condition: bool, fault: str) -> None:
    if not condition:
        raise bad_request(f"{fault}.")  # as written: the names of settings have no capitals


def _require_number(setting: str, value: float) -> None:
    fault = number_fault(setting, value)
    _require(fault is None, fault or "")
