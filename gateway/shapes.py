"""The JSON of the control API as types: what its answers hold and its bodies may hold.

``wire`` fills the answers, so that mypy compares both; ``openapi`` makes the document's schemas of them. Leaves the
meaning of settings to ``fal._spec``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, Literal, NotRequired, TypeVar

from fal._spec import AppSpec, Auth, BundleFile, HealthCheckSpec, KeyScope, ScalingSpec
from typing_extensions import TypedDict

from scheduler.store.records import Priority, RevisionState, WorkerState

T = TypeVar("T")


class Error(TypedDict):
    """What went wrong, with the value and what to do; the type only where fal's protocol has one."""

    detail: str
    error_type: NotRequired[str]


class Items(TypedDict, Generic[T]):
    """A list; there are no pages but where ``limit`` is a parameter."""

    items: list[T]


# --- apps -------------------------------------------------------------------------------------------------------------


class Urls(TypedDict):
    """Where an app (or one of its endpoints) is called: and waited for, and through the queue."""

    sync: str
    queue: str


class DeployedUrls(Urls):
    """The same with those of each endpoint, by path."""

    endpoints: dict[str, Urls]


class Demand(TypedDict):
    """Requests of an app: waiting, waiting for a retry, running."""

    queued: int
    delayed: int
    in_progress: int


class Worker(TypedDict):
    """A worker, which users know as a runner. ``stages``: seconds of each stage of its start.

    ``unhealthy``: it fails the app's health check and gets no request any more; ``retiring`` says how.
    """

    app: str
    worker_id: str
    revision: str
    host: str
    state: WorkerState
    machine_type: str
    device: str
    cpu_fallback_for: str | None
    gpu_ids: list[int]
    gpu_memory_mb: int
    retiring: str | None
    unhealthy: bool
    created_at: str
    ready_at: str | None
    idle_since: str | None
    in_flight: int
    served: int
    reason: str | None
    stages: dict[str, float]
    start_kind: str | None


class StopChoice(TypedDict):
    """How a worker ends: after what it has (as it is without a word), once another one is ready, or at once."""

    how: NotRequired[Literal["drain", "replace", "kill"]]


class Stopped(TypedDict):
    """A worker that was asked to leave."""

    app: str
    worker_id: str
    how: Literal["drain", "replace", "kill"]


class Rollout(TypedDict):
    """How all workers are replaced: ``rolling`` unless said otherwise; ``force`` kills them."""

    strategy: NotRequired[Literal["rolling", "recreate"] | None]
    force: NotRequired[bool]


class RolledOut(TypedDict):
    """How many workers were asked to leave."""

    app: str
    workers: int


class Command(TypedDict):
    """A program and its arguments."""

    command: list[str]


class CommandOutput(TypedDict):
    """An event: what the command wrote, in base64."""

    type: Literal["stdout", "stderr"]
    data: str


class CommandExit(TypedDict):
    """The last event of a command: its exit status; 125 when it was not begun."""

    type: Literal["exit"]
    code: int


class TerminalSize(TypedDict):
    """The screen of whoever types; ``kind`` is what ``TERM`` says there."""

    rows: int
    columns: int
    kind: NotRequired[str]


class TypedCommand(Command):
    """The first message of a terminal's websocket; without ``terminal`` the command reads a pipe."""

    terminal: NotRequired[TerminalSize | None]


class Typed(TypedDict):
    """A later message: bytes in base64, another size of the screen, or that no more bytes will come."""

    type: Literal["input", "size", "end"]
    data: NotRequired[str]
    rows: NotRequired[int]
    columns: NotRequired[int]


class Pointed(TypedDict):
    """An app as its alias says. ``revision`` is what serves; none before the first build is done."""

    app: str
    revision: str | None
    auth: Auth
    ephemeral: bool
    scaling: ScalingSpec
    created_at: str
    urls: Urls


class App(Pointed):
    """An app and what it is doing. What a revision says is there once the app has one."""

    queue: NotRequired[Demand]
    workers: NotRequired[list[Worker]]
    class_name: NotRequired[str]
    entry_file: NotRequired[str]
    machine_types: NotRequired[list[str]]
    endpoints: NotRequired[dict[str, Urls]]
    health_check: NotRequired[HealthCheckSpec | None]
    gpu_memory_mb: NotRequired[int]
    gpu_peak_mb: NotRequired[int | None]
    suspension: NotRequired[str]
    last_startup_error: NotRequired[str | None]
    startup_failures: NotRequired[int]
    health: NotRequired[Literal["OK", "UNHEALTHY"]]
    last_start: NotRequired[dict[str, float]]
    last_crash: NotRequired[str | None]
    next_start_at: NotRequired[str | None]


class AppAndWhy(App):
    """The same with the first thing in the way of the requests that wait."""

    waiting: str | None


@dataclass(frozen=True)
class ScalingChanges(ScalingSpec):
    """Scaling settings, and those of a revision that may be changed until the next deploy."""

    max_multiplexing: int = 1
    startup_timeout: float = 600
    machine_types: tuple[str, ...] = ("S",)


class Scaled(TypedDict):
    """An app's scaling settings after a change, and the revision that serves then."""

    app: str
    scaling: ScalingSpec
    revision: str | None


class RunningRequest(TypedDict):
    """A request that a worker has now; ``attempt`` counts from 1."""

    request_id: str
    worker_id: str | None
    mode: Literal["queued", "direct"]
    attempt: int
    submitted_at: str
    started_at: str | None


class Revision(TypedDict):
    """A version of an app; ``annotations`` are its deployer's own."""

    app: str
    revision: str
    state: RevisionState
    current: bool
    created_at: str
    message: str | None
    error: str | None
    environment_key: str
    bundle_hash: str
    class_name: str
    entry_file: str
    machine_types: list[str]
    last_startup_error: str | None
    annotations: dict[str, str]


class RevisionChoice(TypedDict):
    """The revision that shall serve; it must have been built. ``recreate`` stops the old workers first."""

    revision: str
    strategy: NotRequired[Literal["rolling", "recreate"] | None]
    auth: NotRequired[Auth | None]


class QueueSize(TypedDict):
    """How many requests of an app wait; with ``by_user``, how many of each owner of a key."""

    app: str
    size: int
    by_user: NotRequired[dict[str, int]]


class QueueFlushed(TypedDict):
    """How many requests of an app were ended."""

    app: str
    flushed: int


class Gpu(TypedDict):
    """A card of a host and the machine types that it serves."""

    index: int
    name: str
    memory_mb: int
    machine_types: list[str]


class Host(TypedDict):
    """A machine and what it offers."""

    host: str
    alive: bool
    machine_types: list[str]
    gpus: list[Gpu]
    cpu_fallback: bool
    cpus: int
    memory_mb: int


class LogLine(TypedDict):
    """A line of an app's log. ``at`` is ``timestamp`` in unix seconds; ``id`` is what ``after`` takes."""

    id: str
    at: float
    timestamp: str
    level: str
    message: str
    worker_id: str | None
    request_id: str | None


class LogEvent(LogLine):
    """An event: a line of an app's log."""

    type: Literal["log"]


# --- deploys ----------------------------------------------------------------------------------------------------------


class Deployment(TypedDict):
    """A new revision. ``ephemeral``: an app of ``fal run``, whose name is made up, unless it ``replaces`` one's code;
    ``no_cache``: its environment is built anew; ``reset_scale``: the spec's scaling replaces the alias's."""

    spec: AppSpec
    files: list[BundleFile]
    ephemeral: NotRequired[bool]
    no_cache: NotRequired[bool]
    reset_scale: NotRequired[bool]
    replaces: NotRequired[str | None]
    message: NotRequired[str | None]
    strategy: NotRequired[Literal["rolling", "recreate"] | None]


class Deployed(TypedDict):
    """A revision that was registered; it serves once it is built."""

    app: str
    revision: str
    environment_key: str
    state: RevisionState
    urls: DeployedUrls
    missing_secrets: list[str]


class SettingChange(TypedDict):
    """A setting now (nothing for a new app) and after the deploy; ``ignored`` is what the code says in vain."""

    setting: str
    now: Any
    after: Any
    ignored: NotRequired[Any]


class DeployCheck(TypedDict):
    """What a deploy would change. ``missing_secrets`` are those that the app lists and nobody has set."""

    app: str
    revision: str | None
    settings: list[SettingChange]
    environment_is_built: bool
    missing_secrets: list[str]


class Hashes(TypedDict):
    """SHA-256 of files, in lower-case hex."""

    hashes: list[str]


class MissingHashes(TypedDict):
    """Those that the platform does not have."""

    missing: list[str]


class BuildLine(TypedDict):
    """An event: a line of a build, at a time in unix seconds."""

    type: Literal["log"]
    message: str
    at: float


class BuildState(TypedDict):
    """The last event of a build: how it ended. ``notes`` says how the environment was resolved, and sizes and times."""

    type: Literal["state"]
    state: RevisionState
    error: str | None
    urls: DeployedUrls
    notes: dict[str, Any]


# --- secrets and named environments -----------------------------------------------------------------------------------


class Secret(TypedDict):
    """A secret by name; its value is never told. ``exposed``: all of the owner's apps get it, not only who lists it."""

    name: str
    exposed: bool
    updated_at: str


class SecretValues(TypedDict):
    """Values by name."""

    values: dict[str, str]
    exposed: NotRequired[bool]


class SecretsSet(TypedDict):
    """The names that were set."""

    set: list[str]


class NewEnvironment(TypedDict):
    """A named environment to be made."""

    name: str
    description: NotRequired[str | None]


class NamedEnvironment(NewEnvironment):
    """A named environment; ``main`` was always there."""

    created_at: str | None


# --- dead letters and webhooks ----------------------------------------------------------------------------------------


class Letter(TypedDict):
    """A request that was given up. ``signal`` is what ended its runner, where one did."""

    app: str
    request_id: str
    error_type: str | None
    error: str
    attempts: int
    crashes: int
    exit_code: int | None
    signal: str | None
    worker_id: str | None
    host: str | None
    submitted_at: str
    started_at: str | None
    died_at: str
    method: str
    path: str
    body_bytes: int
    priority: Priority
    webhook: str | None
    replayed_as: str | None
    replayed_at: str | None


class LetterLine(TypedDict):
    """One of the request's last log lines."""

    timestamp: str
    level: str
    message: str


class LetterWithInput(Letter):
    """The same with what was last heard of it and its input. ``body`` is none when it is no text, or over 64 KiB."""

    last_words: str
    log: list[LetterLine]
    query: str
    headers: list[list[str]]
    body: str | None


class Replayed(TypedDict):
    """The new request that a letter became."""

    request_id: str
    replay_of: str
    response_url: str
    status_url: str
    cancel_url: str


class DeadWebhook(TypedDict):
    """A delivery that was given up; ``status`` is the request's own end."""

    app: str
    request_id: str
    url: str
    tries: int
    given_up_at: str
    why: str
    status: Literal["OK", "ERROR"]


class Delivering(TypedDict):
    """A webhook that is on its way again."""

    request_id: str
    status: Literal["DELIVERING"]


# --- keys -------------------------------------------------------------------------------------------------------------


class WhoAmI(TypedDict):
    """The caller's key and whose it is."""

    owner: str
    key_id: str
    scope: str


class Key(TypedDict):
    """An API key without its secret."""

    key_id: str
    owner: str
    name: str
    created_at: str
    revoked: bool
    scope: str


class NewKey(Key):
    """The same with its secret, which is shown this once; ``key`` is what ``FAL_KEY`` takes."""

    secret: str
    key: str


class KeyWanted(TypedDict):
    """What the key is for, in a line of at most 100 characters, and what it is good for: ``FULL`` unless said."""

    name: NotRequired[str]
    scope: NotRequired[KeyScope]


#: A document whose shape is not the platform's, such as an app's own OpenAPI.
Document = dict[str, Any]
