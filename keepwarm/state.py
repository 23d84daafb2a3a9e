"""What a running platform leaves on disk for commands to find: its address, its admin key, the SDK it injects.

Leaves the processes themselves to ``keepwarm.platform``.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

#: First path segments with a meaning of their own; nobody may own them.
RESERVED_OWNERS = frozenset(
    {"run", "queue", "rest", "cdn", "ws", "api", "fal", "dashboard", "health", "metrics", "workflows", "comfy", "docs"}
)
_OWNER = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,62}[a-z0-9])?")


@dataclass(frozen=True)
class PlatformFile:
    """``platform.json``: where the running platform of a data folder is reached."""

    url: str
    redis_url: str
    pid: int
    owner: str
    ephemeral: bool
    #: The roots to trust when the platform serves HTTPS with a certificate of its own making.
    ca_bundle: str | None = None


def data_dir(environ: Mapping[str, str] | None = None) -> Path:
    """The data folder: ``KEEPWARM_DATA``, else ``~/.keepwarm``."""
    environ = os.environ if environ is None else environ
    return Path(environ.get("KEEPWARM_DATA") or "~/.keepwarm").expanduser().absolute()


def default_owner(environ: Mapping[str, str] | None = None) -> str:
    """``KEEPWARM_OWNER``, else the OS user's name made fit for a URL.

    Raises:
        ValueError: a given name that cannot be an owner.
    """
    environ = os.environ if environ is None else environ
    if given := environ.get("KEEPWARM_OWNER"):
        return checked_owner(given)
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # a container's uid without a passwd entry
        name = "local"
    name = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:64] or "local"
    return f"{name}-user" if name in RESERVED_OWNERS else name


def checked_owner(name: str) -> str:
    """``name`` when it can stand as the first segment of an app's URL, else ValueError."""
    if name in RESERVED_OWNERS:
        raise ValueError(f"owner {name!r} is reserved (it begins one of the platform's own paths); choose another")
    if not _OWNER.fullmatch(name):
        raise ValueError(f"owner {name!r} is not usable; use lower-case letters, digits and inner hyphens, at most 64")
    return name


def write_platform_file(folder: Path, content: PlatformFile) -> None:
    """Publish ``platform.json`` atomically, readable by this user alone."""
    write_private(folder / "platform.json", json.dumps(asdict(content)) + "\n")


def read_platform_file(folder: Path) -> PlatformFile | None:
    """The platform that last ran here, or None when there is no (readable) record; it may have died since."""
    try:
        return PlatformFile(**json.loads((folder / "platform.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None


def is_running(content: PlatformFile) -> bool:
    """Whether the process that wrote the record still exists."""
    try:
        os.kill(content.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def read_admin_key(folder: Path) -> str | None:
    """``id:secret`` of the key that the platform made for this machine's user, or None."""
    try:
        return (folder / "admin.key").read_text().strip() or None
    except OSError:
        return None


def write_admin_key(folder: Path, key: str) -> None:
    """Keep the admin key beside the data, readable by this user alone."""
    write_private(folder / "admin.key", key + "\n")


def write_private(path: Path, text: str) -> None:
    """Write a file whole or not at all, readable by this user alone."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    with os.fdopen(handle, "w") as stream:
        stream.write(text)
    Path(temporary).replace(path)


def install_sdk(folder: Path) -> Path:
    """Copy the ``fal`` package into the data folder and return the folder to put on a runner's ``PYTHONPATH``.

    A copy, because the installed package may lie in a ``site-packages`` whose other contents must not leak into a
    user's environment; named by its contents, so that running workers keep theirs across an upgrade.
    """
    spec = find_spec("fal")
    if spec is None or spec.origin is None:
        raise RuntimeError("the fal package is not installed beside keepwarm; install both: pip install ./sdk .")
    source = Path(spec.origin).parent
    files = sorted(
        path for path in source.rglob("*") if path.is_file() and path.suffix in {".py", ".typed", ".json", ".toml"}
    )
    digest = hashlib.sha256()
    for path in files:
        content = path.read_bytes()
        digest.update(f"{path.relative_to(source).as_posix()}\0{len(content)}\0".encode())
        digest.update(content)
    target = folder / "sdk" / digest.hexdigest()[:16]
    if target.is_dir():
        return target
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(dir=target.parent, prefix=".building-"))
    for path in files:
        copy = building / "fal" / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    building.chmod(0o755)
    try:
        building.rename(target)
    except OSError:  # another start was faster; its copy is the same
        shutil.rmtree(building)
    return target
