"""``python -m gpu_worker.zygote_room FD``: makes the place in which an app's zygote lives, then becomes the zygote.

The assignment of a worker like those that it will fork comes on standard input, without what is only that worker's.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys

from gpu_worker import process_tree
from gpu_worker.assignment import Assignment
from gpu_worker.runner_process import runner_environ
from gpu_worker.supervisor import show_app_data

#: What a runner has that is its worker's alone.
_A_WORKERS_OWN = ("FAL_APP_NAME", "FAL_JOB_ID", "FAL_REVISION", "FAL_MACHINE_TYPE", "FAL_RUNNER_STATE")


def main(arguments: list[str]) -> None:
    """Never returns."""
    process_tree.die_with_parent(signal.SIGKILL)
    assignment = Assignment.from_json(sys.stdin.buffer.read())
    if os.getppid() != assignment.parent_pid:
        sys.exit(1)  # the agent died before the kernel knew that we want to hear of it
    process_tree.prefer_for_oom_killer()
    seen_at, _ = show_app_data(assignment)
    environ = runner_environ(assignment, seen_at)
    for name in _A_WORKERS_OWN:
        del environ[name]
    # Said before anything that is not ours runs here: supervisors that are born in this room are known by it.
    room = json.dumps({"room": process_tree.namespaces("self")}).encode()
    socket.socket(fileno=os.dup(int(arguments[0]))).send(room)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.chdir(assignment.sdk_dir)  # as runners are started, and for the same reason
    assert assignment.lessons_file is not None
    command = [assignment.python, "-m", "fal._runner", "--zygote", arguments[0], assignment.lessons_file]
    os.set_inheritable(int(arguments[0]), True)
    os.execve(assignment.python, command, environ)


if __name__ == "__main__":
    main(sys.argv[1:])
