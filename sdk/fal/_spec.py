"""What an app asks for, as plain frozen data: the one description that the CLI writes and every server room reads.

Owns the shapes and their defaults. Leaves checking of incoming JSON to the gateway (``pydantic.TypeAdapter``) and the
reading of user classes to ``fal._loading``. Standard library only: the runner imports this inside the user's venv.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Auth = Literal["private", "shared", "public"]
#: What an API key is good for: everything, calling apps, deploying and looking after them, or only looking.
KeyScope = Literal["FULL", "API", "DEPLOY", "READONLY"]
RetryCondition = Literal["timeout", "server_error", "connection_error"]

#: The method of a request that is a connection; no caller over HTTP can send it.
WEBSOCKET = "WEBSOCKET"

#: CPU machine types of fal's documentation: (cores, memory in MiB). Every host offers them.
CPU_MACHINE_TYPES: dict[str, tuple[float, int]] = {
    "XS": (0.5, 512),
    "S": (1, 1024),
    "M": (2, 2048),
    "L": (4, 15 * 1024),
    "XL": (8, 30 * 1024),
}


@dataclass(frozen=True)
class EnvironmentSpec:
    """The inputs of an environment; nothing else may influence what is built.

    Args:
        python_version: minor version such as ``"3.11"``.
        requirements: install layers in order, each a tuple of pip lines (options such as ``--extra-index-url URL``
            are allowed as items).
        constraints: pip constraint lines applied to every layer.
        exclude_newer: RFC 3339 date or time; only distributions uploaded before it are considered. ``None`` lets the
            builder resolve "as of the pins" where exact pins and floating names mix.
        smoke_imports: what the app's files import, as ``module`` or ``module:name``; tried once after the install.
        built_anew: names one of several environments of the same inputs: a deploy that wanted a fresh one got it.
    """

    python_version: str
    requirements: tuple[tuple[str, ...], ...] = ()
    constraints: tuple[str, ...] = ()
    exclude_newer: str | None = None
    smoke_imports: tuple[str, ...] = ()
    built_anew: str = ""


@dataclass(frozen=True)
class ScalingSpec:
    """Scaling settings and limits of requests; they belong to the app's alias and survive deploys. Times in seconds.

    Args:
        request_timeout: for one attempt.
        request_start_timeout: within which a request must start whose caller does not say so; None: no limit.
        app_priority: who gets a card first when several apps wait for one; an app above another may also take the cards
            of its idle workers before their keep_alive is over.
    """

    keep_alive: int = 60
    min_concurrency: int = 0
    max_concurrency: int = 2
    concurrency_buffer: int = 0
    concurrency_buffer_perc: int = 0
    scaling_delay: float = 0
    app_priority: int = 0
    request_timeout: float = 3600
    request_start_timeout: float | None = None


@dataclass(frozen=True)
class EndpointSpec:
    """One route of an app: ``path`` begins with ``/``; ``name`` is the method's name."""

    path: str
    name: str
    is_websocket: bool = False


@dataclass(frozen=True)
class HealthCheckSpec:
    """How a runner is asked whether it still works. Times in seconds; see ``fal.HealthCheck``.

    Args:
        path: an endpoint, or ``/health``, whose ``GET`` is answered by the app's ``health()``.
        start_period_seconds: as written; ``startup_timeout`` is used where that is longer.
    """

    path: str
    method: Literal["GET", "POST"] = "POST"
    start_period_seconds: float = 30
    timeout_seconds: float = 5
    failure_threshold: int = 3
    call_regularly: bool = True


@dataclass(frozen=True)
class AppSpec:
    """Everything the platform needs to know of one revision, besides its bundle's files. Times in seconds.

    Args:
        name: the alias, ``[a-z0-9][a-z0-9-]*``, without the owner.
        class_name: symbol inside ``entry_file``.
        entry_file: posix path of the app's file inside the bundle.
        machine_types: tried in order; the first that a host offers is used.
        env: the named environment whose secrets it gets; outside ``main`` the app's name ends in ``--env``.
        auth: ``None`` means "keep the alias's, else private" (``fal run``: public).
        gpu_memory_mb: MiB that a worker needs of each of its GPUs, which it then shares with others that say theirs;
            0 takes whole GPUs.
        recycle_after_requests, recycle_after_seconds, recycle_above_mb: a worker that has served so many requests or so
            long, or whose processes take so many MiB of RAM, is replaced by a fresh one; 0: never.
        for_calls: ``class_name`` is a function, and requests are calls of it from its user's own machine.
        setup_function: with ``for_calls``, the function of the file whose value it gets first; empty: as the file says.
        exposed_port: ``class_name`` is a function that starts a web server on this port, which is the app; 0: none.
        health_check: None: the app has said nothing of its health.
    """

    name: str
    class_name: str
    entry_file: str
    environment: EnvironmentSpec
    machine_types: tuple[str, ...] = ("S",)
    num_gpus: int = 1
    gpu_memory_mb: int = 0
    scaling: ScalingSpec = field(default_factory=ScalingSpec)
    auth: Auth | None = None
    max_multiplexing: int = 1
    startup_timeout: float = 600
    termination_grace_period_seconds: float = 30
    cancel_grace_seconds: float | None = None
    recycle_after_requests: int = 0
    recycle_after_seconds: float = 0
    recycle_above_mb: int = 0
    skip_retry_conditions: tuple[RetryCondition, ...] = ()
    retry_config: dict[str, int] = field(default_factory=dict)
    secrets: tuple[str, ...] | None = None
    env: str = "main"
    for_calls: bool = False
    setup_function: str = ""
    exposed_port: int = 0
    endpoints: tuple[EndpointSpec, ...] = ()
    health_check: HealthCheckSpec | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; ``pydantic.TypeAdapter(AppSpec).validate_python`` reads it back."""
        return asdict(self)


@dataclass(frozen=True)
class BundleFile:
    """One source file of a bundle: posix ``path`` inside it, hex SHA-256, size in bytes, executable or not."""

    path: str
    sha256: str
    size: int
    executable: bool = False
