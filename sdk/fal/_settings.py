"""The settings of an app: which names exist, what they may hold, and the spec they amount to.

Owns names, defaults and checks. Leaves merging class keywords with attributes to ``fal.app``, and files (bundle,
local requirements) to the command line's loader. Standard library only.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast, get_args

from fal._limits import NUMBERS, number_fault
from fal._spec import Auth, RetryCondition, ScalingSpec

_SCALING = frozenset(ScalingSpec.__dataclass_fields__)
#: Settings that may be class attributes as well as class keywords.
ATTRIBUTES = frozenset(
    {
        "app_auth",
        "app_files",
        "app_files_context_dir",
        "app_files_ignore",
        "constraints",
        "data_mounts",
        "exclude_newer",
        "gpu_memory",
        "health_check_config",
        "image",
        "kind",
        "local_python_modules",
        "machine_type",
        "max_multiplexing",
        "metadata",
        "metrics_port",
        "num_gpus",
        "private_logs",
        "python_version",
        "recycle_above_memory",
        "recycle_after_requests",
        "recycle_after_seconds",
        "regions",
        "requirements",
        "requirements_context_dir",
        "resolver",
        "retry_config",
        "secrets",
        "skip_retry_conditions",
        "startup_timeout",
        "termination_grace_period_seconds",
        "cancel_grace_seconds",
        *_SCALING,
    }
)
#: Accepted because existing code carries them; they steer machinery that this platform does not have.
_IGNORED = frozenset(
    {
        "_base_image",
        "_scheduler",
        "_scheduler_options",
        "compile_bytecode",
        "exposed_port",
        "force",
        "force_env_build",
        "setup_function",
    }
)
KNOWN = ATTRIBUTES | _IGNORED
DEFAULTS: Mapping[str, Any] = {"machine_type": "S", "keep_alive": 60, "resolver": "uv"}
APP_FILES_IGNORE = (r"\.pyc$", r"__pycache__/", r"\.git/", r"\.DS_Store$")
_MEMORY = re.compile(r"(\d+(?:\.\d+)?)\s*([GM])i?B?", re.IGNORECASE)
_NAME_PARTS = re.compile(r"[A-Z][a-z]*")


@dataclass(frozen=True)
class RetryConfig:
    """Extra attempts per kind of failure; ``None`` keeps the platform's own number. Negative counts mean 0."""

    timeout: int | None = None
    server_error: int | None = None
    connection_error: int | None = None


@dataclass(frozen=True)
class AppSettings:
    """What an app's class says, checked.

    Args:
        spec: keyword arguments of ``AppSpec``, all but ``entry_file`` and ``environment``.
        environment: keyword arguments of ``EnvironmentSpec``, all but ``smoke_imports``.
        requirements_context_dir: base of local-path requirements; ``None`` is the app file's folder.
        app_files, app_files_ignore, app_files_context_dir: extra files of the bundle; see the loader.
        local_python_modules: names of modules that travel with the app's file.
    """

    spec: dict[str, Any]
    environment: dict[str, Any]
    requirements_context_dir: str | None = None
    app_files: tuple[str, ...] = ()
    app_files_ignore: tuple[str, ...] = APP_FILES_IGNORE
    app_files_context_dir: str | None = None
    local_python_modules: tuple[str, ...] = ()
    ignored: tuple[str, ...] = field(default=())


def app_name_of(class_name: str) -> str:
    """The alias that a class gets when none is given: ``MyGoodApp`` becomes ``my-good-app``; digits vanish."""
    if "_" in class_name:
        name = class_name.replace("_", "-").lower()
    elif class_name[:1].isupper():
        name = "-".join(part.lower() for part in _NAME_PARTS.findall(class_name))
    else:
        name = class_name.lower()
    return name.strip("-")


def check_known(owner: str, settings: Mapping[str, Any]) -> None:
    """Refuse a setting that does not exist.

    Raises:
        ValueError: names the setting and the closest one that exists.
    """
    for key in settings:
        if key in KNOWN:
            continue
        close = difflib.get_close_matches(key, KNOWN, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"settings are: {', '.join(sorted(ATTRIBUTES))}"
        raise ValueError(f"{owner}: unknown setting {key!r}; {hint}")


def resolve(owner: str, given: Mapping[str, Any]) -> AppSettings:
    """Check merged settings and bring them into the platform's form.

    Args:
        owner: name of the class or function, for messages.
        given: settings by name; see ``KNOWN``.

    Raises:
        ValueError: an unknown setting, or a value that cannot be meant; says which, the value and what to write.
    """
    check_known(owner, given)
    values = {**DEFAULTS, **{key: value for key, value in given.items() if value is not None}}
    _refuse_containers(owner, values)
    for key in sorted(NUMBERS & values.keys()):
        if (fault := number_fault(key, values[key])) is not None:
            raise ValueError(f"{owner}: {fault}")
    spec: dict[str, Any] = {
        "machine_types": _strings(owner, "machine_type", values["machine_type"]),
        "scaling": _scaling(owner, values),
        "auth": _auth(owner, values.get("app_auth")),
        "skip_retry_conditions": _retry_conditions(owner, values.get("skip_retry_conditions", ())),
        "retry_config": _retry_config(owner, values.get("retry_config")),
        "metadata": dict(values.get("metadata", {})),
    }
    for key in (
        "num_gpus",
        "max_multiplexing",
        "startup_timeout",
        "termination_grace_period_seconds",
        "cancel_grace_seconds",
        "recycle_after_requests",
        "recycle_after_seconds",
    ):
        if key in values:
            spec[key] = values[key]
    if "gpu_memory" in values:
        spec["gpu_memory_mb"] = _mebibytes(owner, "gpu_memory", values["gpu_memory"])
    if "recycle_above_memory" in values:
        spec["recycle_above_mb"] = _mebibytes(owner, "recycle_above_memory", values["recycle_above_memory"])
    if "secrets" in values:
        spec["secrets"] = _strings(owner, "secrets", values["secrets"], allow_text=False)
    return AppSettings(
        spec=spec,
        environment={
            "python_version": str(values.get("python_version") or f"{sys.version_info[0]}.{sys.version_info[1]}"),
            "requirements": requirement_layers(owner, values.get("requirements", ())),
            "constraints": _strings(owner, "constraints", values.get("constraints", ()), allow_text=False),
            "exclude_newer": values.get("exclude_newer"),
        },
        requirements_context_dir=values.get("requirements_context_dir"),
        app_files=_strings(owner, "app_files", values.get("app_files", ()), allow_text=False),
        app_files_ignore=_strings(
            owner, "app_files_ignore", values.get("app_files_ignore", APP_FILES_IGNORE), allow_text=False
        ),
        app_files_context_dir=values.get("app_files_context_dir"),
        local_python_modules=_strings(
            owner, "local_python_modules", values.get("local_python_modules", ()), allow_text=False
        ),
        ignored=tuple(sorted(_IGNORED & given.keys())),
    )


def requirement_layers(owner: str, requirements: Any) -> tuple[tuple[str, ...], ...]:
    """Install layers in order: a flat list of pip lines is one layer, a list of lists is one layer each.

    Raises:
        ValueError: a bare string, or anything else that is not lines.
    """
    if isinstance(requirements, str):
        raise ValueError(f"{owner}: requirements is the text {requirements!r}; write a list: [{requirements!r}]")
    items = list(requirements)
    if not items:
        return ()
    if all(isinstance(item, str) for item in items):
        return (tuple(items),)
    if all(isinstance(item, list | tuple) and all(isinstance(line, str) for line in item) for item in items):
        return tuple(tuple(layer) for layer in items if layer)
    raise ValueError(f"{owner}: requirements is {requirements!r}; write a list of pip lines, or a list of such lists")


def _refuse_containers(owner: str, values: Mapping[str, Any]) -> None:
    kind = values.get("kind", "virtualenv")
    if kind != "virtualenv" or "image" in values:
        what = "a container image" if "image" in values or kind == "container" else f"an environment of kind {kind!r}"
        raise ValueError(
            f"{owner} asks for {what}, which is not supported: leave it out, and list the Python packages that the app "
            "needs in requirements = [...]; what they need of the system must be on the hosts"
        )


def _strings(owner: str, key: str, value: Any, *, allow_text: bool = True) -> tuple[str, ...]:
    if isinstance(value, str) and allow_text and value:
        return (value,)
    if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(v, str) for v in value):
        raise ValueError(f"{owner}: {key} is {value!r}; write a list of strings")
    if allow_text and not value:
        raise ValueError(f"{owner}: {key} is empty; name at least one")
    return tuple(value)


def _mebibytes(owner: str, key: str, value: Any) -> int:
    """``"12GB"`` or ``"800MB"`` in MiB; both are read as powers of 1024, as memory is sold."""
    found = _MEMORY.fullmatch(value.strip()) if isinstance(value, str) else None
    size = round(float(found[1]) * (1024 if found[2].upper() == "G" else 1)) if found else 0
    if size < 1 or number_fault("gpu_memory_mb", size) is not None:
        raise ValueError(f'{owner}: {key} is {value!r}; write what one worker may take, as in "12GB"')
    return size


def _scaling(owner: str, values: Mapping[str, Any]) -> ScalingSpec:
    given = {key: values[key] for key in _SCALING & values.keys()}
    low = given.get("min_concurrency", 0)
    if "max_concurrency" in given and given["max_concurrency"] < low:
        raise ValueError(f"{owner}: max_concurrency is {given['max_concurrency']}, below min_concurrency = {low}")
    if "max_concurrency" not in given:
        given["max_concurrency"] = max(ScalingSpec.max_concurrency, low)
    return ScalingSpec(**given)


def _auth(owner: str, value: Any) -> Auth | None:
    if value is not None and value not in get_args(Auth):
        raise ValueError(f"{owner}: app_auth is {value!r}; it must be one of {', '.join(get_args(Auth))}")
    return cast("Auth | None", value)


def _retry_conditions(owner: str, value: Any) -> tuple[RetryCondition, ...]:
    conditions = _strings(owner, "skip_retry_conditions", value, allow_text=False)
    for condition in conditions:
        _check_condition(owner, "skip_retry_conditions", condition)
    return cast("tuple[RetryCondition, ...]", conditions)


def _check_condition(owner: str, key: str, condition: Any) -> None:
    if condition not in get_args(RetryCondition):
        raise ValueError(f"{owner}: {key} names {condition!r}; conditions are {', '.join(get_args(RetryCondition))}")


def _retry_config(owner: str, value: Any) -> dict[str, int]:
    if value is None:
        return {}
    pairs = vars(value) if isinstance(value, RetryConfig) else value
    if not isinstance(pairs, Mapping):
        raise ValueError(f"{owner}: retry_config is {value!r}; write fal.RetryConfig(server_error=2)")
    retries: dict[str, int] = {}
    for condition, count in pairs.items():
        _check_condition(owner, "retry_config", condition)
        number = count.get("retries") if isinstance(count, Mapping) else count
        if number is None:
            continue
        if isinstance(number, bool) or not isinstance(number, int):
            raise ValueError(f"{owner}: retry_config[{condition!r}] is {count!r}; write a number of extra attempts")
        retries[condition] = max(0, number)
    if not retries:
        raise ValueError(f"{owner}: retry_config is empty; name at least one of {', '.join(get_args(RetryCondition))}")
    return retries
