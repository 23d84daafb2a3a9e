"""``keepwarm up``: Redis, gateway, scheduler, host agent and jobs as children of one process, for good or for one run.

Owns starting, restarting and stopping them, the listening socket and platform.json. Knows nothing of requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shlex
import signal
import socket
import ssl
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import httpx
import psutil

from keepwarm import redis_server, state, tls
from keepwarm.services import SERVICE_MODULES, Child, die_with_parent, service_command, spawn

#: Seconds for the gateway to answer /health after a start; a cold disk with a large append-only file is slow.
START_TIMEOUT = 60.0
#: Seconds between looks at how long the certificate lives.
CERTIFICATE_LOOK = 3600.0
#: Where Python's HTTP libraries look for the roots to trust.
_ROOTS_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")


class PlatformError(Exception):
    """The platform cannot run; the message says why and what to do."""


@dataclass(frozen=True)
class Options:
    """What ``keepwarm up`` was asked for."""

    host: str
    port: int
    data: Path
    owner: str
    fsync: redis_server.Fsync
    redis_url: str | None = None
    public_url: str | None = None
    cpu_fallback: bool = False
    zygotes: bool = True
    offer: str | None = None
    ephemeral: bool = False
    tls: bool = False


class Platform:
    """One platform on one data folder.

    Args:
        options: see Options.
        report: takes one line for the operator.
    """

    def __init__(self, options: Options, report: Callable[[str], None]) -> None:
        self._options = options
        self._report = report
        self._children: list[Child] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._signals = 0
        self._leave = asyncio.Event()
        self._redis_url = ""
        self._listener: socket.socket | None = None
        self._run_lock: TextIO | None = None
        self._tls: tls.TlsFiles | None = None

    async def run(self) -> None:
        """Run until a signal (or, when ephemeral, until no ``fal run`` is left).

        Raises:
            PlatformError: another platform holds the folder, it cannot be used, the port is taken, Redis or a service
                does not start.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal)
        self._make_folder()
        with redis_server.single_owner(self._options.data) as owner:
            if not owner:
                raise PlatformError(self._already_running())
            try:
                await self._start()
                await self._leave.wait()
            finally:
                await self._stop()

    def _make_folder(self) -> None:
        folder = self._options.data
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise PlatformError(
                f"the data folder {folder} cannot be used: {error}; choose another with --data"
            ) from error

    def _already_running(self) -> str:
        record = state.read_platform_file(self._options.data)
        where = f" at {record.url} (process {record.pid})" if record else ""
        return f"a platform already runs on {self._options.data}{where}; use it, stop it, or choose another --data"

    async def _start(self) -> None:
        options = self._options
        self._listener = _listen(options.host, options.port)
        if options.tls:
            self._tls = self._certificates()
            self._tasks.append(asyncio.create_task(self._renew_certificates()))
        url = options.public_url or self._local_url()
        if options.redis_url:
            self._redis_url = options.redis_url
        else:
            await self._start_redis()
        key = await self._admin_key()
        environ = self._environ()
        for name in SERVICE_MODULES:
            self._keep(Child(name, self._starter(name, environ), self._report))
        await self._wait_healthy(url)
        roots = str(self._tls.roots) if self._tls is not None else None
        state.write_platform_file(
            options.data, state.PlatformFile(url, self._redis_url, os.getpid(), options.owner, options.ephemeral, roots)
        )
        if options.ephemeral:
            self._tasks.append(asyncio.create_task(self._leave_with_last_run()))
        self._report(f"Keepwarm is ready at {url}")
        if not options.ephemeral:
            self._report(f"  data folder   {options.data}")
            self._report(f"  API key       {key.split(':')[0]}:… (in {options.data / 'admin.key'}; see keepwarm env)")
            if self._tls is not None:
                self._report(f"  certificates  signed by {self._tls.authority}, which clients must trust")
            self._report(f"  next          {_next_command(options.data)}")

    def _certificates(self) -> tls.TlsFiles:
        options = self._options
        return tls.ensure(options.data, tls.wanted_names(options.host, options.public_url))

    async def _renew_certificates(self) -> None:
        """The gateway sees a new file by itself."""
        while True:
            await asyncio.sleep(CERTIFICATE_LOOK)
            try:
                await asyncio.to_thread(self._certificates)
            except OSError as error:
                self._report(f"the certificate cannot be renewed: {error}")

    def _keep(self, child: Child) -> None:
        self._children.append(child)
        self._tasks.append(asyncio.create_task(child.keep_alive(), name=f"keep-{child.name}"))

    async def _start_redis(self) -> None:
        data, fsync = self._options.data, self._options.fsync
        binary = redis_server.find_binary()
        for folder in (data / "redis", data / "logs"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        listening = redis_server.socket_path(data)
        listening.unlink(missing_ok=True)
        self._redis_url = f"unix://{listening}"

        async def start() -> asyncio.subprocess.Process:
            return await asyncio.create_subprocess_exec(
                *redis_server.server_arguments(binary, data, fsync),
                stdin=asyncio.subprocess.DEVNULL,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )

        child = Child("redis", start, self._report)
        self._keep(child)
        await self._until(
            lambda: redis_server.answers(listening), child, f"Redis did not answer; see {data / 'logs' / 'redis.log'}"
        )

    def _starter(self, name: str, environ: dict[str, str]) -> Callable[[], Awaitable[asyncio.subprocess.Process]]:
        async def start() -> asyncio.subprocess.Process:
            own = dict(environ)
            fds: list[int] = []
            if name == "gateway" and self._listener is not None:
                # Held here, so that callers wait in the backlog instead of being refused while a gateway restarts.
                own["KEEPWARM_LISTEN_FD"] = str(self._listener.fileno())
                fds = [self._listener.fileno()]
            return await spawn(service_command(name), own, fds)

        return start

    def _environ(self) -> dict[str, str]:
        options = self._options
        environ = dict(os.environ)
        environ |= {
            "KEEPWARM_REDIS_URL": self._redis_url,
            "KEEPWARM_DATA": str(options.data),
            "KEEPWARM_OWNER": options.owner,
            "KEEPWARM_SDK_DIR": str(state.install_sdk(options.data)),
            "KEEPWARM_LOCAL_URL": self._local_url(),
        }
        if options.public_url:
            environ["KEEPWARM_PUBLIC_URL"] = options.public_url
        if self._tls is not None:
            environ["KEEPWARM_TLS_CERT"] = str(self._tls.certificate)
            environ.pop("KEEPWARM_TLS_KEY", None)
            # Apps fetch what callers uploaded here, so that they must trust this gateway too.
            environ |= dict.fromkeys(_ROOTS_VARIABLES, str(self._tls.roots))
            passed = environ.get("KEEPWARM_RUNNER_ENV", "")
            environ["KEEPWARM_RUNNER_ENV"] = ",".join(filter(None, (passed, *_ROOTS_VARIABLES)))
        if options.cpu_fallback:
            environ["KEEPWARM_CPU_FALLBACK"] = "1"
        if not options.zygotes:
            environ["KEEPWARM_ZYGOTES"] = "0"
        if options.offer:
            environ["KEEPWARM_OFFER"] = options.offer
        # Bytecode makes every later start 2.7 times as fast; a container image may have switched it off.
        environ.pop("PYTHONDONTWRITEBYTECODE", None)
        return environ

    async def _admin_key(self) -> str:
        """The key of this machine's user: the one on disk while the store knows it, else a new one."""
        from scheduler.store import Store
        from scheduler.store.errors import StoreError

        try:
            store = await Store.connect(self._redis_url, self._options.data)
        except (StoreError, ValueError) as error:
            raise PlatformError(f"Redis at {self._redis_url} cannot be used: {error}") from error
        try:
            key = state.read_admin_key(self._options.data)
            if key and ":" in key:
                record = await store.keys.verify(*key.split(":", 1))
                if record is not None and record.owner == self._options.owner:
                    return key
            record, secret = await store.keys.create(self._options.owner, "admin")
            key = f"{record.key_id}:{secret}"
            state.write_admin_key(self._options.data, key)
            return key
        finally:
            await store.close()

    async def _wait_healthy(self, url: str) -> None:
        gateway = next(child for child in self._children if child.name == "gateway")
        trusted = ssl.create_default_context(cafile=str(self._tls.roots)) if self._tls is not None else True
        async with httpx.AsyncClient(timeout=2.0, trust_env=False, verify=trusted) as client:
            loop = asyncio.get_running_loop()
            deadline = loop.time() + START_TIMEOUT
            while not self._leave.is_set():
                with contextlib.suppress(httpx.HTTPError):
                    if (await client.get(f"{self._local_url()}/health")).status_code == 200:
                        return
                if loop.time() > deadline or gateway.restarts >= 3:
                    raise PlatformError(f"the gateway does not answer at {url}/health; its messages stand above")
                await asyncio.sleep(0.02)

    def _local_url(self) -> str:
        assert self._listener is not None
        host, port = self._listener.getsockname()[:2]
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        scheme = "https" if self._tls is not None else "http"
        return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"

    async def _until(self, condition: Callable[[], bool], child: Child, failure: str) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + START_TIMEOUT
        while not condition():
            if loop.time() > deadline or child.restarts >= 3:
                raise PlatformError(failure)
            await asyncio.sleep(0.005)

    async def _leave_with_last_run(self) -> None:
        """Stop once no ``fal run`` holds its shared lock; the lock stays ours until the end, so that a ``fal run``
        that starts meanwhile waits for us to be gone and then starts a platform of its own."""
        handle = open(self._options.data / "run-sessions.lock", "a", encoding="ascii")  # noqa: SIM115
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                await asyncio.sleep(0.25)
                continue
            self._run_lock = handle  # closed by the kernel, after Redis has stopped
            self._report("the last fal run has ended; stopping")
            self._leave.set()
            return

    def _on_signal(self) -> None:
        self._signals += 1
        if self._signals == 1:
            self._report("stopping: running requests may finish (interrupt again to force)")
            self._leave.set()
        else:
            self._report("forced: killing everything that is left")
            kill_descendants()

    async def _stop(self) -> None:
        with contextlib.suppress(OSError):
            record = state.read_platform_file(self._options.data)
            if record is not None and record.pid == os.getpid():
                (self._options.data / "platform.json").unlink()
        if self._listener is not None:
            self._listener.close()
        redis = [child for child in self._children if child.name == "redis"]
        for child in self._children:
            child.stopping = True
        # The agent drains workers through the store and the gateway still hands out their results, so both stop
        # before the services that they use.
        others = [child for child in self._children if child.name != "redis"]
        await asyncio.gather(*(child.stop() for child in others))
        await asyncio.gather(*(child.stop() for child in redis))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        kill_descendants()


def _next_command(data: Path) -> str:
    """What to type next: `fal` finds the platform of the default folder by itself, any other must be named to it."""
    if data == state.data_dir({}):
        return "fal run examples/hello.py::Hello"
    return f"eval \"$(keepwarm env --data {shlex.quote(str(data))} | sed 's/^/export /')\"   (in the shell of your fal)"


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise PlatformError(f"cannot listen on {host}:{port}: {error.strerror}; choose another with --port") from error
    listener.listen(2048)
    listener.set_inheritable(True)
    return listener


def kill_descendants() -> None:
    """SIGKILL every process below this one; whoever is left after a clean stop is a leak, and a forced stop is for
    exactly those."""
    for process in _descendants():
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _descendants() -> Iterator[psutil.Process]:
    yield from psutil.Process().children(recursive=True)


def run(options: Options) -> int:
    """Run a platform in this process; returns the exit status."""

    def report(line: str) -> None:
        print(line, flush=True)

    try:
        asyncio.run(Platform(options, report).run())
    except (PlatformError, redis_server.RedisMissing) as error:
        print(f"keepwarm up: {error}", file=sys.stderr, flush=True)
        return 1
    return 0
