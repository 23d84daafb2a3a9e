"""What a supervisor is told when it is started: everything it needs to start the runner before it talks to the store.

Plain data that travels as JSON on the supervisor's standard input, so that neither arguments nor environment show the
store's address. Standard library only (and the SDK's spec): the supervisor reads it before anything else.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from fal._spec import HealthCheckSpec


@dataclass(frozen=True)
class Assignment:
    """One worker to be. Times in seconds; ``ordered_at`` is on this machine's monotonic clock.

    Args:
        parent_pid: who starts the supervisor, which does not outlive it for long.
        python: interpreter of the app's environment.
        environment_dir: folder of that environment, shown to the runner as ``VIRTUAL_ENV``.
        bundle_dir: the app's files; the runner's working directory.
        files_dir: where the runner leaves files for the store; on the store's filesystem, this worker's alone.
        home_dir: the persistent folder that apps share, which they see as ``/data``; caches and HOME lie in it.
        sdk_dir: folder that holds ``fal``.
        passed_environ: what the operator passes on to runners, by name and value.
        platform_environ: variables by which the app finds the platform that runs it.
        storage_hosts: the platform's own addresses, which downloads may reach though they are private.
        stages: what has been measured so far, by stage name.
        files: where users' files are kept, by variable; empty: in the data folder.
        lessons_file: where it is kept what this start shows about the next one (see ``lessons``).
        runner_pid: the runner, when a zygote has forked it; None: it is to be started.
        in_zygotes_room: the supervisor is born with the zygote's view of the file system.
        for_calls, setup_function, exposed_port: as ``AppSpec``.
        runner_tasks, runner_memory: as ``AgentSettings``.
        secrets: variables that the app gets once it runs; its log does not show their values.
        health_check: how the runner is asked whether it works; None: it is not.
        health_seconds: pause between two such checks.
        ping_seconds: pause between two pings of the runner; three unanswered in a row mean that it hangs.
        suspension_proven: runners of this revision were suspended and came back.
        simulated_gpus: the cards are not there; RAM stands for their memory.
        recycle_after_requests, recycle_after_seconds, recycle_above_mb: as ``AppSpec``.
    """

    app: str
    worker_id: str
    revision: str
    machine_type: str
    python: str
    environment_dir: str
    bundle_dir: str
    files_dir: str
    home_dir: str
    sdk_dir: str
    data_dir: str
    redis_url: str
    entry_file: str
    class_name: str
    ordered_at: float
    parent_pid: int
    gpu_ids: tuple[int, ...] = ()
    cpu_fallback_for: str | None = None
    max_multiplexing: int = 1
    request_timeout: float = 3600.0
    startup_timeout: float = 600.0
    termination_grace: float = 30.0
    cancel_grace: float | None = None
    skip_retry_conditions: tuple[str, ...] = ()
    retry_config: dict[str, int] = field(default_factory=dict)
    passed_environ: dict[str, str] = field(default_factory=dict)
    storage_hosts: tuple[str, ...] = ()
    platform_environ: dict[str, str] = field(default_factory=dict)
    stages: dict[str, float] = field(default_factory=dict)
    ping_seconds: float = 8.0
    health_check: HealthCheckSpec | None = None
    health_seconds: float = 15.0
    files: dict[str, str] = field(default_factory=dict)
    simulated_gpus: bool = False
    suspension_proven: bool = False
    recycle_after_requests: int = 0
    recycle_after_seconds: float = 0
    recycle_above_mb: int = 0
    lessons_file: str | None = None
    runner_pid: int | None = None
    in_zygotes_room: bool = False
    for_calls: bool = False
    setup_function: str = ""
    exposed_port: int = 0
    runner_tasks: int = 0
    runner_memory: int = 0
    secrets: dict[str, str] = field(default_factory=dict, repr=False)

    def to_json(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Assignment:
        """Read it back; unknown fields are ignored.

        Raises:
            ValueError: not JSON or not an object.
            TypeError: a field is missing.
        """
        raw: dict[str, Any] = json.loads(data)
        known = {f.name: raw[f.name] for f in fields(cls) if f.name in raw}
        for name in ("gpu_ids", "skip_retry_conditions", "storage_hosts"):
            known[name] = tuple(known.get(name, ()))
        if known.get("health_check") is not None:
            known["health_check"] = HealthCheckSpec(**known["health_check"])
        return cls(**known)
