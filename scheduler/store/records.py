"""What the store hands out and takes in: frozen data, no behaviour, nothing imported but the SDK's spec.

States are fields. Each member of an enum says who moves a record into it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

from fal._spec import AppSpec, Auth, BundleFile, ScalingSpec

Headers = tuple[tuple[str, str], ...]
Priority = Literal["normal", "low"]
Mode = Literal["direct", "queued"]


class RequestState(StrEnum):
    """Life of a request; the last three are terminal and final."""

    IN_QUEUE = "IN_QUEUE"  # submit, replay_letter (gateway), retry (supervisor, reaper), promote (scheduler)
    IN_PROGRESS = "IN_PROGRESS"  # claim, finish (supervisor); submit (gateway) when it hands over to a parked worker
    COMPLETED = "COMPLETED"  # finish (supervisor): the app answered below 400
    ERROR = "ERROR"  # finish, claim (supervisor), retry (supervisor, reaper), fail_queued, fail_waiting (scheduler)
    CANCELLED = "CANCELLED"  # cancel, fail_waiting (gateway)

    @property
    def terminal(self) -> bool:
        return self not in (RequestState.IN_QUEUE, RequestState.IN_PROGRESS)


class WorkerState(StrEnum):
    """Life of a worker, in fal's words for runners."""

    PENDING = "PENDING"  # scheduler placed it; no process yet
    SETUP = "SETUP"  # supervisor started the runner: import and setup()
    IDLE = "IDLE"  # supervisor: ready, nothing in flight
    RUNNING = "RUNNING"  # supervisor: requests in flight
    SUSPENDED = "SUSPENDED"  # supervisor: its cards are free for others, its runner stands still until it is resumed
    DRAINING = "DRAINING"  # supervisor: takes nothing new, finishes what it has
    TERMINATED = "TERMINATED"  # supervisor, host agent or reaper: gone


class EnvironmentState(StrEnum):
    """Life of an environment."""

    QUEUED = "QUEUED"  # gateway asked for it
    BUILDING = "BUILDING"  # builder has begun
    READY = "READY"  # builder: installed and smoke-imported
    FAILED = "FAILED"  # builder: see error and the build log


class RevisionState(StrEnum):
    """Life of a revision."""

    BUILDING = "BUILDING"  # gateway stored it; its environment is not ready yet
    READY = "READY"  # jobs: environment ready, the alias may point here
    FAILED = "FAILED"  # jobs: build failed; the alias stays where it was


@dataclass(frozen=True, slots=True)
class Submission:
    """A request as the gateway hands it over. Times in seconds.

    ``app`` is ``owner/name``. ``path`` begins with ``/`` and is the app's route. ``headers`` are those the app may
    see, lower-case names. ``gateway`` names the process to push the result to, if somebody waits there.
    ``start_timeout`` counts from submission and ends when processing starts. ``keep_s``: how long the result is kept,
    the store's own time when None; without ``store_io`` an hour, and six minutes from 10 KB on.
    """

    app: str
    request_id: str
    mode: Mode
    method: str
    path: str
    query: str
    headers: Headers
    body: bytes
    base_url: str
    priority: Priority = "normal"
    start_timeout: float | None = None
    max_attempts: int = 10
    retries: Mapping[str, int] | None = None
    webhook: str | None = None
    gateway: str | None = None
    max_queue_length: int | None = None
    idempotency_key: str | None = None
    keep_s: float | None = None
    store_io: bool = True


@dataclass(frozen=True, slots=True)
class Submitted:
    """Stored. ``position`` = requests ahead in the queue; ``duplicate`` when this id (or key) was already known."""

    request_id: str
    position: int
    duplicate: bool = False


@dataclass(frozen=True, slots=True)
class Replayed:
    """The request made of a dead letter; ``earlier`` when an earlier replay had made it and nothing was done now."""

    request_id: str
    earlier: bool = False


@dataclass(frozen=True, slots=True)
class Claimed:
    """One attempt given to one worker; ``attempt`` is the fence that every later write must carry.

    ``solo``: it is suspected of having crashed a runner; the inbox hands it out only when nothing else is in flight.
    ``body_ref``: where a large body lies on disk; it is deleted when the request has its result.
    """

    app: str
    request_id: str
    attempt: int
    mode: Mode
    method: str
    path: str
    query: str
    headers: Headers
    body: bytes
    base_url: str
    gateway: str | None
    submitted_at_ms: int
    worker_id: str = ""
    solo: bool = False
    body_ref: str | None = None
    retries: Mapping[str, int] | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt ended: the HTTP answer, or an infrastructure error in HTTP form.

    ``error_type`` is one of protocol.md's names and only set for the platform's own errors.
    """

    status: int
    headers: Headers
    body: bytes
    error_type: str | None = None
    inference_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """What is known of a request. Times are unix milliseconds of the Redis server's clock."""

    app: str
    request_id: str
    state: RequestState
    mode: Mode
    attempt: int
    submitted_at_ms: int
    started_at_ms: int | None = None
    finished_at_ms: int | None = None
    outcome: Outcome | None = None
    error: str | None = None
    error_type: str | None = None
    worker_id: str | None = None
    webhook: str | None = None
    position: int | None = None


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A queued request that was given up: three crashes alone, or all its attempts used up. Times as in RequestRecord.

    ``error`` says how the last attempt ended, ``words`` what its dying runner wrote last (or what the app answered),
    ``log`` the request's own last lines. ``exit_code`` is negative for a signal and None when nobody saw the end.
    ``replayed_as`` is the newest request made of it. The body is read on its own: see ``Letters.body``.
    """

    app: str
    request_id: str
    error: str
    attempts: int
    crashes: int
    submitted_at_ms: int
    died_at_ms: int
    method: str
    path: str
    query: str
    headers: Headers
    base_url: str
    body_bytes: int
    body_ref: str | None = None
    started_at_ms: int | None = None
    error_type: str | None = None
    worker_id: str | None = None
    host: str | None = None
    exit_code: int | None = None
    words: str = ""
    log: tuple[LogEntry, ...] = ()
    priority: Priority = "normal"
    webhook: str | None = None
    replayed_as: str | None = None
    replayed_at_ms: int | None = None


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One line of an app's log. ``id`` is the stream id, for "everything after this"."""

    id: str
    at: float
    level: str
    message: str
    worker_id: str | None = None
    request_id: str | None = None


@dataclass(frozen=True, slots=True)
class AppRecord:
    """An alias: what ``owner/name`` points at, and the settings that survive deploys.

    ``ephemeral`` apps belong to a ``fal run`` and live while its session does.
    """

    app: str
    revision: str | None
    auth: Auth
    scaling: ScalingSpec
    ephemeral: bool
    created_at_ms: int


@dataclass(frozen=True, slots=True)
class RevisionRecord:
    """An immutable version of an app, and how its workers fare.

    ``crash_streak``: 0, or by how much crashes hold its next worker back; see ``back_off``. ``last_start``: seconds of
    each stage of its last worker's start, and their ``total``; empty before the first. ``gpu_peak_mb``: the most that a
    worker of it was seen to use of one GPU, in MiB; 0 before that. ``suspension``: why its workers cannot be suspended,
    empty when one has been and came back, None before anybody tried.
    """

    app: str
    revision: str
    spec: AppSpec
    bundle_hash: str
    files: tuple[BundleFile, ...]
    environment_key: str
    state: RevisionState
    created_at_ms: int
    error: str | None = None
    message: str | None = None
    openapi: str | None = None
    startup_failures: int = 0
    last_startup_error: str | None = None
    last_startup_failure_at_ms: int | None = None
    crash_streak: int = 0
    last_crash: str | None = None
    last_crash_at_ms: int | None = None
    last_start: dict[str, float] = field(default_factory=dict)
    gpu_peak_mb: int = 0
    suspension: str | None = None


@dataclass(frozen=True, slots=True)
class EnvironmentRecord:
    """An environment as all hosts see it; ``path`` is its folder on hosts that share the builder's disk."""

    key: str
    state: EnvironmentState
    path: str | None = None
    error: str | None = None
    updated_at_ms: int = 0
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class WorkerRecord:
    """A worker. ``stages`` maps a start stage to seconds. ``beat_at_ms`` is its last sign of life.

    ``start_kind``: ``zygote`` when its runner was forked, ``spawn`` when started plainly; None before it is ready.
    ``idle_since_ms``: when its last request ended or it became ready; None while it has work or is not ready.
    ``leftover``: slots still taken by code whose request has ended without it (cancelled, lease lost).
    ``gpu_memory_mb``: MiB that it was given of each of its GPUs; 0: they are all its own. ``retiring``: why it should
    be replaced; until another one serves in its place it goes on, or stays without getting requests if it is
    ``unhealthy``: it fails the app's health check.
    """

    app: str
    worker_id: str
    revision: str
    host: str
    state: WorkerState
    machine_type: str
    gpu_ids: tuple[int, ...]
    created_at_ms: int
    device: str = "cpu"
    cpu_fallback_for: str | None = None
    ready_at_ms: int | None = None
    idle_since_ms: int | None = None
    beat_at_ms: int | None = None
    in_flight: int = 0
    leftover: int = 0
    served: int = 0
    stop_requested: str | None = None
    reason: str | None = None
    stages: dict[str, float] = field(default_factory=dict)
    gpu_memory_mb: int = 0
    retiring: str | None = None
    start_kind: str | None = None
    unhealthy: bool = False

    @property
    def leaves(self) -> bool:
        """Whether it was told to stop for good; one that is suspended or comes back was not."""
        return self.stop_requested not in (None, "suspend", "resume")

    @property
    def takes_requests(self) -> bool:
        """Whether it does or will, as far as what it was told goes: it is not to stop, nor to stand still."""
        return self.stop_requested in (None, "resume")


@dataclass(frozen=True, slots=True)
class HostRecord:
    """A machine that offers resources, as its agent reported it.

    ``gpus`` lists (index, NVML name, memory MiB, machine type names it serves). ``machine_types`` is every name that
    the host serves for real; ``cpu_fallback`` says that the operator lets its CPU stand in for GPU types. ``suspends``:
    how many suspended workers it keeps at most. ``room_cores``, ``room_mb``: cores and MiB of RAM that workers of CPU
    types may take together; 0: they are not counted.
    """

    host: str
    machine_types: tuple[str, ...]
    gpus: tuple[tuple[int, str, int, tuple[str, ...]], ...]
    cpu_fallback: bool
    cpus: int
    memory_mb: int
    alive: bool = True
    suspends: int = 0
    room_cores: float = 0
    room_mb: int = 0


@dataclass(frozen=True, slots=True)
class AppSeen:
    """One atomic look at an app's demand and supply; ``now_ms`` is the Redis server's clock at that moment.

    ``queued`` waits in the queue, ``delayed`` for the end of a back-off, the first until ``next_delayed_at_ms``.
    """

    app: str
    now_ms: int
    queued: int
    delayed: int
    in_progress: int
    oldest_queued_at_ms: int | None
    workers: tuple[WorkerRecord, ...]
    next_delayed_at_ms: int | None = None


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """A revision that waits for its environment; the rest is for when the alias moves.

    ``recreate``: workers of the revision before leave at once instead of serving until new ones are ready.
    """

    app: str
    revision: str
    environment_key: str
    ephemeral: bool = False
    reset_scale: bool = False
    recreate: bool = False


@dataclass(frozen=True, slots=True)
class NamedEnvironmentRecord:
    """A named environment; ``main`` has no time of creation."""

    name: str
    description: str = ""
    created_at_ms: int | None = None


@dataclass(frozen=True, slots=True)
class SecretRecord:
    """A secret without its value. ``exposed``: apps that do not list their secrets get it too."""

    name: str
    exposed: bool
    updated_at_ms: int


@dataclass(frozen=True, slots=True)
class ApiKeyRecord:
    """An API key without its secret. ``scope`` may be one that a later version has made."""

    key_id: str
    owner: str
    name: str
    created_at_ms: int
    revoked: bool = False
    scope: str = "FULL"


@dataclass(frozen=True, slots=True)
class Terminal:
    """Whoever reads a command's output does it on a screen of this size; ``kind`` is what ``TERM`` says."""

    rows: int = 24
    columns: int = 80
    kind: str = "xterm"


@dataclass(frozen=True, slots=True)
class Command:
    """What an owner runs beside a worker: without ``takes_input`` its input is empty, with ``terminal`` it is one."""

    arguments: tuple[str, ...]
    takes_input: bool = False
    terminal: Terminal | None = None


@dataclass(frozen=True, slots=True)
class WebhookDelivery:
    """An entry of the outbox: the delivery of one finished request. ``tries`` made so far."""

    app: str
    request_id: str
    url: str
    tries: int
    due_at_ms: int


@dataclass(frozen=True, slots=True)
class DeadWebhook:
    """A delivery that was given up after ``tries``; ``why`` is how the last one ended."""

    app: str
    request_id: str
    url: str
    tries: int
    given_up_at_ms: int
    why: str
    state: RequestState
