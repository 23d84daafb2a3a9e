"""How this machine builds: folders, indexes, limits, link mode. Read once from environment variables.

Children of a build see only what is named here, so that nothing else of the operator's shell can change a result.
pip's configuration *files* are not read (uv does not either); pip's environment variables are, where uv's are absent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast, get_args

LinkMode = Literal["auto", "clone", "copy", "hardlink"]

#: Handed to uv and to source builds as they are: proxies, certificates, compilers, uv's network settings.
_PASSED_ON = """
    PATH LANG LC_ALL TZ LD_LIBRARY_PATH SSL_CERT_FILE SSL_CERT_DIR NETRC
    HTTP_PROXY HTTPS_PROXY ALL_PROXY NO_PROXY http_proxy https_proxy all_proxy no_proxy
    CC CXX CFLAGS CXXFLAGS LDFLAGS CUDA_HOME CUDA_PATH TORCH_CUDA_ARCH_LIST MAX_JOBS
    UV_INDEX UV_NO_INDEX UV_INDEX_STRATEGY UV_KEYRING_PROVIDER UV_INSECURE_HOST UV_HTTP_TIMEOUT UV_HTTP_RETRIES
    UV_NATIVE_TLS UV_SYSTEM_CERTS UV_OFFLINE UV_CONCURRENT_BUILDS UV_CONCURRENT_DOWNLOADS UV_CONCURRENT_INSTALLS
    OPENBLAS_CORETYPE OPENBLAS_L2_SIZE
"""
_GPU_SIGNS = ("/dev/nvidiactl", "/dev/nvidia0", "/proc/driver/nvidia/version", "/dev/dxg")


@dataclass(frozen=True)
class BuildSettings:
    """Settings of one builder. Times in seconds, sizes in bytes.

    Args:
        environments: folder of all environments.
        uv_cache: uv's cache; on the same filesystem, or every install copies across.
        uploaded: where files that were sent along lie, each under its SHA-256.
        child_environment: the only variables that uv, source builds and smoke imports see.
        default_index, extra_indexes, find_links: the operator's, in uv's meaning; the first index that has a name wins.
            No default index: the one that uv itself knows.
        link_mode: how files come from uv's cache into an environment. ``auto`` clones where the filesystem can and
            copies elsewhere. ``hardlink`` is for operators whose runners cannot write to environments: with it a
            changed file changes in every environment at once. (uv's own ``clone`` quietly falls back to hard links.)
        gpu_present: whether this machine has an NVIDIA GPU; without one, floating torch is held to the CPU wheels of
            ``find_links``.
        torch_backend: ``auto`` does the above; any other value goes to uv's ``--torch-backend`` (needs PyTorch's own
            index), ``index`` takes whatever the index has.
        wall_limit: for one whole build; None means 15 minutes, 60 for sets that may hold CUDA.
        silence_limit: without a line of output and without any work of the processor.
        disk_floor: a build stops while this much is still free, because the queue's data may share the disk.
        source_builds: whether packages without a fitting wheel may be built (runs their code on this machine).
    """

    environments: Path
    uv_cache: Path
    uploaded: Path = Path("/nonexistent")
    child_environment: Mapping[str, str] = field(default_factory=dict)
    default_index: str | None = None
    extra_indexes: tuple[str, ...] = ()
    find_links: tuple[str, ...] = ()
    link_mode: LinkMode = "auto"
    gpu_present: bool = False
    torch_backend: str = "auto"
    wall_limit: float | None = None
    silence_limit: float = 120
    disk_floor: int = 1 << 30
    source_builds: bool = True

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> BuildSettings:
        """Read ``KEEPWARM_*``, ``UV_*`` and ``PIP_*`` variables.

        Raises:
            ValueError: naming the variable, its value and what is allowed.
        """
        data = Path(environ.get("KEEPWARM_DATA") or "~/.keepwarm").expanduser()
        default_index, extra_indexes = _indexes(environ)
        link_mode = environ.get("KEEPWARM_LINK_MODE", "auto")
        if link_mode not in get_args(LinkMode):
            raise ValueError(f"KEEPWARM_LINK_MODE={link_mode!r}: use one of {', '.join(get_args(LinkMode))}.")
        return cls(
            environments=_path(environ, "KEEPWARM_ENVIRONMENTS_DIR", data / "environments"),
            uv_cache=_path(environ, "KEEPWARM_UV_CACHE_DIR", data / "uv-cache"),
            uploaded=data / "bundles" / "objects",
            child_environment=_child_environment(environ),
            default_index=default_index,
            extra_indexes=extra_indexes,
            find_links=_find_links(environ),
            link_mode=cast(LinkMode, link_mode),
            gpu_present=any(Path(sign).exists() for sign in _GPU_SIGNS),
            torch_backend=environ.get("KEEPWARM_TORCH_BACKEND", "auto"),
            wall_limit=number_setting(environ, "KEEPWARM_BUILD_WALL_SECONDS", None),
            silence_limit=number_setting(environ, "KEEPWARM_BUILD_SILENCE_SECONDS", 120.0) or 120.0,
            disk_floor=int(number_setting(environ, "KEEPWARM_BUILD_DISK_FLOOR_BYTES", float(1 << 30)) or 0),
            source_builds=environ.get("KEEPWARM_BUILD_FROM_SOURCE", "1") != "0",
        )

    @property
    def cpu_only(self) -> bool:
        """Whether torch is to be held to the CPU where the user leaves the choice."""
        return self.torch_backend == "cpu" or (self.torch_backend == "auto" and not self.gpu_present)


def _indexes(environ: Mapping[str, str]) -> tuple[str | None, tuple[str, ...]]:
    default = environ.get("UV_DEFAULT_INDEX") or environ.get("UV_INDEX_URL")
    extra = environ.get("UV_EXTRA_INDEX_URL")
    if not default and not extra and not environ.get("UV_INDEX"):
        default, extra = environ.get("PIP_INDEX_URL"), environ.get("PIP_EXTRA_INDEX_URL")
    return default or None, tuple((extra or "").split())


def _find_links(environ: Mapping[str, str]) -> tuple[str, ...]:
    """uv separates them by commas, pip by spaces. An absent folder is left out: uv would refuse every build."""
    if "UV_FIND_LINKS" in environ:
        places = [place.strip() for place in environ["UV_FIND_LINKS"].split(",")]
    else:
        places = environ.get("PIP_FIND_LINKS", "").split()
    return tuple(place for place in places if place and ("://" in place or Path(place).expanduser().is_dir()))


def _child_environment(environ: Mapping[str, str]) -> dict[str, str]:
    child = {name: value for name, value in environ.items() if name in _PASSED_ON.split()}
    credentials = ("_USERNAME", "_PASSWORD")
    child |= {n: v for n, v in environ.items() if n.startswith("UV_INDEX_") and n.endswith(credentials)}
    child.setdefault("PATH", "/usr/local/bin:/usr/bin:/bin")
    child.setdefault("LANG", "C.UTF-8")
    if certificates := environ.get("PIP_CERT"):
        child.setdefault("SSL_CERT_FILE", certificates)
    if environ.get("PIP_NO_INDEX", "") not in ("", "0", "false"):
        child.setdefault("UV_NO_INDEX", "1")
    if "NETRC" not in child and environ.get("HOME"):
        netrc = Path(environ["HOME"]) / ".netrc"
        child |= {"NETRC": str(netrc)} if netrc.is_file() else {}
    return child


def _path(environ: Mapping[str, str], name: str, default: Path) -> Path:
    """Without symbolic links: a venv's scripts name their interpreter by its full path, and links come and go."""
    return (Path(environ[name]).expanduser() if environ.get(name) else default).resolve()


def number_setting(environ: Mapping[str, str], name: str, default: float | None = None) -> float | None:
    """A number that is not negative from a variable, or ``default`` when it is not set.

    Raises:
        ValueError: naming the variable and its value.
    """
    text = environ.get(name)
    if not text:
        return default
    try:
        value = float(text)
    except ValueError as error:
        raise ValueError(f"{name}={text!r} is not a number.") from error
    if value < 0:
        raise ValueError(f"{name}={text!r} is negative.")
    return value
