"""``/data`` and ``/app`` as user code knows them: the platform's persistent folder and the app's files, shown there to
one worker and nobody else.

Owns the mount namespace that a supervisor enters before it starts its runner; the host's own ``/`` is never written to.
Leaves what lies in the folder to the apps that share it. Standard library only: the supervisor runs this first.

    python -m gpu_worker.app_data FOLDER     says why FOLDER cannot be shown on this host, or nothing
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

#: The path that apps name; fal's, and therefore not a setting.
SEEN_AT = "/data"
APP_SEEN_AT = "/app"

_NEWNS, _NEWUSER = 0x0002_0000, 0x1000_0000
_BIND, _REC, _SLAVE, _NOSUID, _NODEV = 0x1000, 0x4000, 0x8_0000, 0x2, 0x4
_DETACH = 2
#: What apps write elsewhere in ``/`` stays in memory and goes with the worker, so there is a limit to it.
_ROOT_OPTIONS = b"mode=0755,size=256m"
#: glibc has no function for it, and its number is the machine's own.
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


class CannotShow(Exception):
    """The folder cannot be shown at ``/data`` here; the message says why and what to do."""


def show(
    folder: Path, workplace: Path, needed: Sequence[Path] = (), *, app: Path | None = None, afresh: bool = False
) -> None:
    """From now on ``/data`` is ``folder`` for this process and all that it starts, and ``/app`` is ``app``.

    A ``/app`` of the host's own in which something lies that is needed stays what it is. Nothing is done where
    ``/data`` leads to ``folder`` anyway: a link, or an operator who made it the apps' folder.

    Args:
        workplace: where the new view of the file system is put together. Workers may share it, for each mounts there
            in a namespace of its own; nobody may ever empty it recursively, for the host's files may be below.
        needed: folders that must stay visible, so must not lie in a ``/data`` of the host's own.
        app: the app's files.
        afresh: this process has inherited a view made here; it gets one of its own all the same.

    Raises:
        CannotShow: not here. This process sees what it saw before.
    """
    if not afresh and _leads_to(folder):
        return
    hidden = next((path for path in needed if path.is_relative_to(SEEN_AT)), None)
    if hidden is not None and not afresh:
        raise CannotShow(
            f"{hidden} lies in this host's own {SEEN_AT}, which may then not be covered; "
            f"KEEPWARM_APP_DATA={SEEN_AT} gives apps that folder itself"
        )
    if _LIBC is None or platform.machine() not in _PIVOT_ROOT:
        raise CannotShow(f"that takes Linux on x86_64 or aarch64, this is {sys.platform} on {platform.machine()}")
    shown = {SEEN_AT: folder.resolve()}
    if app is not None and (afresh or not any(path.is_relative_to(APP_SEEN_AT) for path in (*needed, folder))):
        shown[APP_SEEN_AT] = app.resolve()
    where = os.getcwd()
    try:
        workplace.mkdir(parents=True, exist_ok=True, mode=0o700)
        _enter_namespace()
        _build(workplace.resolve(), shown)
    except OSError as error:
        raise CannotShow(
            f"{error.filename or 'the kernel'}: {error.strerror}; as root write `ln -s {folder} {SEEN_AT}` instead"
        ) from error
    os.chdir(where)


def _leads_to(folder: Path) -> bool:
    try:
        return os.path.samefile(SEEN_AT, folder)
    except OSError:
        return False


def _enter_namespace() -> None:
    """A view of the file system of our own: as root at once, else inside a user namespace that changes nothing else."""
    try:
        _call("unshare", _NEWNS)
    except PermissionError:
        user, group = os.geteuid(), os.getegid()
        _call("unshare", _NEWNS | _NEWUSER)
        for file, line in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
            Path(f"/proc/self/{file}").write_text(line, encoding="ascii")
    # Later mounts of the host still arrive here; none of ours leaves.
    _call("mount", None, b"/", None, _REC | _SLAVE, None)


def _build(root: Path, shown: Mapping[str, Path]) -> None:
    """Everything that ``/`` holds, folders in the places of ``shown``, and then that as ``/``.

    A mount point cannot be made in ``/`` itself: whoever is not root may not, and root would leave it behind.
    """
    _call("mount", b"tmpfs", os.fsencode(root), b"tmpfs", _NOSUID | _NODEV, _ROOT_OPTIONS)
    try:
        for entry in os.scandir("/"):
            if entry.path not in shown:
                _repeat(entry, root)
        # The new root was copied into itself along with the folder that it stands in.
        _call("umount2", os.fsencode(f"{root}{root}"), _DETACH)
        for place, folder in shown.items():
            _bind(str(folder), root / place.lstrip("/"), is_folder=True)
        old = root / ".old"
        old.mkdir()
        _call("syscall", _PIVOT_ROOT[platform.machine()], os.fsencode(root), os.fsencode(old))
    except OSError:
        _call("umount2", os.fsencode(root), _DETACH)
        raise
    os.chdir("/")
    _call("umount2", b"/.old", _DETACH)
    os.rmdir("/.old")


def _repeat(entry: os.DirEntry[str], root: Path) -> None:
    target = root / entry.name
    if entry.is_symlink():
        target.symlink_to(os.readlink(entry.path))
    else:
        _bind(entry.path, target, is_folder=entry.is_dir())


def _bind(source: str, target: Path, *, is_folder: bool) -> None:
    if is_folder:
        target.mkdir()
    else:
        target.touch()
    _call("mount", os.fsencode(source), os.fsencode(target), None, _BIND | _REC, None)


def _call(name: str, *arguments: int | bytes | None) -> None:
    assert _LIBC is not None
    given = [ctypes.c_ulong(value) if isinstance(value, int) else ctypes.c_char_p(value) for value in arguments]
    if getattr(_LIBC, name)(*given) != 0:
        number = ctypes.get_errno()
        shown = next((value.decode(errors="replace") for value in arguments if isinstance(value, bytes)), "")
        raise OSError(number, os.strerror(number), f"{name} {shown}".strip())


def main(arguments: list[str]) -> int:
    """Try it in this process, which then ends."""
    workplace = tempfile.mkdtemp(prefix="keepwarm-view-")
    try:
        show(Path(arguments[0]), Path(workplace))
    except CannotShow as refusal:
        print(refusal)
        return 1
    finally:
        with contextlib.suppress(OSError):
            os.rmdir(workplace)  # empty, or still covered: then it stays
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
