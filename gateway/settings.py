"""What the gateway is told by its environment: one frozen record, defaults and checks together."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from scheduler.store import files_variables

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_TRUE = frozenset({"1", "true", "yes", "on"})
_BASE_URL = re.compile(r"https?://[A-Za-z0-9._~\[\]:-]+(/[A-Za-z0-9._~/-]*)?")


class SettingsError(ValueError):
    """A variable of the environment has a value that cannot be used."""


@dataclass(frozen=True)
class Settings:
    """Settings of one gateway process. Sizes in bytes, times in seconds.

    Args:
        redis_url: ``unix://`` or ``redis://``.
        data_dir: the platform's data folder.
        public_url: base of every URL handed out, without a final slash; None: what the caller's Host header says.
        listen_fd: an inherited listening socket; wins over host and port.
        max_body_bytes: larger request bodies get 413.
        max_object_bytes: larger source files get 413; they go to the disk as they come.
        max_file_bytes: larger uploads of callers get 413; they go to the disk as they come too.
        max_buffered_bytes: bodies being received or handed to the store, of all callers together; beyond it 503.
        max_header_bytes: request line and headers together.
        header_timeout: from the first byte (or the connect) to the last header.
        body_timeout: how often a body that is still arriving is looked at; on average it must bring 16 KiB a second.
        idle_timeout: a kept-alive connection without a request.
        write_timeout: a caller who takes nothing of a streamed answer for so long is cut off.
        max_message_bytes: a connection's caller who sends a larger message is cut off with close code 1009.
        accept_after: a connection whose app is still starting is opened for its caller after so long.
        max_waiting: direct requests waiting and connections in this process; beyond it 503.
        max_wait: longest wait for a direct answer.
        keep_results_hours: how long results of queued requests are kept.
        stop_grace: how long a stopping gateway lets requests end.
        trusted_proxies: peers whose X-Forwarded-Proto and X-Forwarded-Host are believed.
        files: where users' files are kept; empty: in the data folder.
        app_data: what apps see as ``/data``; None: ``data/`` in the data folder.
    """

    redis_url: str
    data_dir: Path
    owner: str = "local"
    public_url: str | None = None
    bind_host: str = "127.0.0.1"
    bind_port: int = 8000
    listen_fd: int | None = None
    tls_certificate: str | None = None
    tls_key: str | None = None
    max_body_bytes: int = 64 * 1024 * 1024
    max_object_bytes: int = 1024 * 1024 * 1024
    max_file_bytes: int = 5 * 1024 * 1024 * 1024
    max_buffered_bytes: int = 1024 * 1024 * 1024
    max_header_bytes: int = 16 * 1024
    header_timeout: float = 10.0
    body_timeout: float = 30.0
    idle_timeout: float = 65.0
    write_timeout: float = 60.0
    max_message_bytes: int = 16 * 1024 * 1024
    accept_after: float = 8.0
    max_waiting: int = 4096
    max_wait: float = 7200.0
    keep_results_hours: int = 24
    stop_grace: float = 8.0
    allow_private_webhooks: bool = False
    trusted_proxies: tuple[Network, ...] = field(default=())
    files: Mapping[str, str] = field(default_factory=dict)
    app_data: Path | None = None

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Settings:
        """Read ``KEEPWARM_*``.

        Raises:
            SettingsError: naming the variable, its value and what is expected.
        """
        public_url = (environ.get("KEEPWARM_PUBLIC_URL") or "").rstrip("/") or None
        if public_url and not _BASE_URL.fullmatch(public_url):
            raise SettingsError(f"KEEPWARM_PUBLIC_URL={public_url!r} is not an http(s) URL such as https://gpu.example")
        redis_url = environ.get("KEEPWARM_REDIS_URL")
        if not redis_url:
            raise SettingsError("KEEPWARM_REDIS_URL is not set; `keepwarm up` sets it, or give unix:///… or redis://…")
        listen_fd = environ.get("KEEPWARM_LISTEN_FD")
        app_data = environ.get("KEEPWARM_APP_DATA")
        return cls(
            redis_url=redis_url,
            data_dir=Path(environ.get("KEEPWARM_DATA") or "~/.keepwarm").expanduser().absolute(),
            owner=environ.get("KEEPWARM_OWNER") or cls.owner,
            public_url=public_url,
            bind_host=environ.get("KEEPWARM_BIND_HOST") or cls.bind_host,
            bind_port=_number(environ, "KEEPWARM_BIND_PORT", cls.bind_port, 0, 65535),
            listen_fd=_number(environ, "KEEPWARM_LISTEN_FD", 0, 0, 1 << 20) if listen_fd else None,
            tls_certificate=environ.get("KEEPWARM_TLS_CERT") or None,
            tls_key=environ.get("KEEPWARM_TLS_KEY") or None,
            max_body_bytes=_number(environ, "KEEPWARM_MAX_BODY_BYTES", cls.max_body_bytes, 1024, 1 << 32),
            max_file_bytes=_number(environ, "KEEPWARM_MAX_FILE_BYTES", cls.max_file_bytes, 1024, 1 << 42),
            max_message_bytes=_number(
                environ, "KEEPWARM_MAX_MESSAGE_BYTES", cls.max_message_bytes, 1024, 64 * 1024 * 1024
            ),
            max_waiting=_number(environ, "KEEPWARM_MAX_WAITING", cls.max_waiting, 1, 1_000_000),
            max_wait=float(_number(environ, "KEEPWARM_MAX_WAIT", int(cls.max_wait), 1, 7 * 86400)),
            keep_results_hours=_number(environ, "KEEPWARM_KEEP_RESULTS_HOURS", cls.keep_results_hours, 1, 744),
            allow_private_webhooks=environ.get("KEEPWARM_ALLOW_PRIVATE_WEBHOOKS", "").lower() in _TRUE,
            trusted_proxies=_networks(environ.get("KEEPWARM_TRUSTED_PROXIES", "")),
            files=_files(environ),
            app_data=Path(app_data).expanduser().absolute() if app_data else None,
        )


def _number(environ: Mapping[str, str], name: str, default: int, low: int, high: int) -> int:
    given = environ.get(name)
    if not given:
        return default
    try:
        value = int(given)
    except ValueError:
        raise SettingsError(f"{name}={given!r} is not a whole number") from None
    if not low <= value <= high:
        raise SettingsError(f"{name}={value} is out of range; use {low} to {high}")
    return value


def _files(environ: Mapping[str, str]) -> dict[str, str]:
    try:
        return files_variables(environ)
    except ValueError as error:
        raise SettingsError(str(error)) from None


def _networks(given: str) -> tuple[Network, ...]:
    found: list[Network] = []
    for item in given.replace(",", " ").split():
        try:
            found.append(ipaddress.ip_network(item, strict=False))
        except ValueError:
            raise SettingsError(f"KEEPWARM_TRUSTED_PROXIES: {item!r} is no IP address or network") from None
    return tuple(found)
