"""Who listens on a port of this machine, as far as it is this process or one that it has started.

Reads /proc; where there is none, nobody can tell, and the port is taken for ours.
"""

from __future__ import annotations

import os
from pathlib import Path

_LISTEN = "0A"


def is_ours(port: int, proc: Path = Path("/proc")) -> bool:
    """Whether this process or a descendant listens on ``port``."""
    try:
        inodes = _listening(port, proc)
    except OSError:
        return True
    links = {f"socket:[{inode}]" for inode in inodes}
    return any(_holds(pid, links, proc) for pid in _family(os.getpid(), proc))


def _listening(port: int, proc: Path) -> set[str]:
    """Inodes of the sockets that listen on it."""
    found: set[str] = set()
    for table in ("tcp", "tcp6"):
        path = proc / "net" / table
        if table == "tcp6" and not path.exists():
            continue
        for line in path.read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == _LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                found.add(fields[9])
    return found


def _family(pid: int, proc: Path) -> set[int]:
    parents: dict[int, int] = {}
    for entry in proc.iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, ValueError, IndexError):
                continue  # it has ended meanwhile
    family, before = {pid}, 0
    while len(family) > before:
        before = len(family)
        family |= {child for child, parent in parents.items() if parent in family}
    return family


def _holds(pid: int, links: set[str], proc: Path) -> bool:
    try:
        for descriptor in (proc / str(pid) / "fd").iterdir():
            try:
                if os.readlink(descriptor) in links:
                    return True
            except OSError:
                continue
    except OSError:
        return False
    return False
