"""Runs one command and ends everything it started as soon as its own standard input closes. A script, never imported.

A builder that is killed cannot clean up after itself, but the kernel closes its pipe: so a killed builder, a reached
limit and a normal end all leave no compiler or download behind. Only a process that makes its own session escapes.
"""

import os
import signal
import subprocess
import sys
import threading


def _end_group_when_abandoned(group: int) -> None:
    while os.read(0, 4096):
        pass
    _end(group)


def _end(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        pass


def main(command: list[str]) -> int:
    """Exit status of ``command``; 128 + signal when it was ended by one, 127 when it cannot be started."""
    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0)
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", flush=True)
        return 127
    threading.Thread(target=_end_group_when_abandoned, args=(child.pid,), daemon=True).start()
    # Not reaped yet, so that the group's number cannot be given to anybody else before the stragglers are ended.
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    _end(child.pid)
    status = child.wait()
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    status = main(sys.argv[1:])
    # Without interpreter shutdown: the thread still waits in read().
    os._exit(status)
