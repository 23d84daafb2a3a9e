"""``python -m gpu_worker.supervisor``: one worker. The assignment comes on standard input (see ``assignment``).

Starts the runner before it imports anything heavy, so that the two processes come up side by side.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from gpu_worker import app_data, lessons, process_tree, read_ahead, runner_group
from gpu_worker.assignment import Assignment
from gpu_worker.runner_group import RunnerGroup
from gpu_worker.runner_process import RunnerProcess, model_folders, start_message

#: Exit status when not even the runner's process could be started.
EXIT_NO_RUNNER = 4
_UNLIMITED = "nothing limits the processes and the memory of this runner"


def main() -> int:
    """Run one worker; returns the exit status."""
    # A dead agent takes its supervisors along, but lets them finish: SIGTERM drains.
    process_tree.die_with_parent(signal.SIGTERM)
    process_tree.adopt_orphans()
    assignment = Assignment.from_json(sys.stdin.buffer.read())
    if os.getppid() != assignment.parent_pid:
        return EXIT_NO_RUNNER  # the agent died before the kernel knew that we want to hear of it
    born_in = process_tree.namespaces("self") if assignment.runner_pid is not None else {}
    seen_at, warning = show_app_data(assignment)
    group, unlimited = _group_for(assignment)
    folders = model_folders(assignment, seen_at)
    try:
        runner = _take_over(assignment, seen_at, born_in, group) or RunnerProcess.start(assignment, seen_at, group)
    except OSError as error:
        if group is not None:
            group.remove()
        print(f"worker {assignment.worker_id}: its runner cannot be started: {error}", file=sys.stderr, flush=True)
        return EXIT_NO_RUNNER
    if not runner.limited:
        unlimited = f"{_UNLIMITED}: the kernel does not let it into its control group"
    runner.tell_start(start_message(assignment))
    read_ahead.begin(lessons.read(assignment.lessons_file).files, folders)

    import asyncio

    import uvloop

    from gpu_worker.worker_life import Worker

    async def live() -> int:
        return await Worker(assignment, runner, folders, [line for line in (warning, unlimited) if line]).run()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop:
        return loop.run(live())


def _group_for(assignment: Assignment) -> tuple[RunnerGroup | None, str | None]:
    """What bounds the runner, and what its log says when a limit that could be enforced here could not."""
    limits = {runner_group.TASKS: assignment.runner_tasks, runner_group.MEMORY: assignment.runner_memory}
    try:
        return RunnerGroup.make(assignment.worker_id, limits), None
    except OSError as error:
        return None, f"{_UNLIMITED}: {error}"


def _take_over(
    assignment: Assignment, seen_at: str | None, born_in: dict[str, str], group: RunnerGroup | None
) -> RunnerProcess | None:
    """The runner that a zygote has forked for us; None when there is none (any more)."""
    if assignment.runner_pid is None:
        return None
    try:
        return RunnerProcess.take_over(assignment, seen_at, born_in, group)
    except OSError as error:
        print(f"worker {assignment.worker_id}: the forked runner has ended: {error}", file=sys.stderr, flush=True)
        return None


def show_app_data(assignment: Assignment) -> tuple[str | None, str | None]:
    """Where the runner sees the apps' folder, and what its log says when that is not ``/data``."""
    folder, data = Path(assignment.home_dir), Path(assignment.data_dir)
    needed = (data, Path(assignment.python), Path(assignment.bundle_dir), Path(assignment.sdk_dir))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        app = Path(assignment.bundle_dir)
        app_data.show(folder, data / "view", needed, app=app, afresh=assignment.in_zygotes_room)
    except (app_data.CannotShow, OSError) as error:
        seen, shown = app_data.SEEN_AT, "fal.toolkit.FAL_PERSISTENT_DIR"
        return None, f"{seen} cannot be shown to apps on this host ({error}); {shown} is {folder}"
    return app_data.SEEN_AT, None


if __name__ == "__main__":
    sys.exit(main())
