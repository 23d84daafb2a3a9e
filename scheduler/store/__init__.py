"""All durable state of the platform, and the only door to Redis.

``Store`` is wiring: each noun has its file, each move of a request its Lua script. Leaves deciding to the scheduler,
HTTP to the gateway and processes to the workers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path

from . import errors, keys, outcomes, records
from .api_keys import ApiKeys
from .apps import Apps
from .blobs import BlobStore
from .bundles import BundleStore
from .commands import Commands
from .connection import PATIENCE, Address, Redis
from .connections import Connections
from .data_folder import DataFolder
from .environments import Environments
from .errors import (
    IdempotencyConflict,
    InboxClosed,
    NotFound,
    QueueFull,
    StaleLeader,
    StoreError,
    StoreFull,
    StoreUnavailable,
)
from .files import FileStore, Lifecycle, StoredFile
from .hosts import Hosts
from .inbox import Inbox
from .lanes import Lane
from .leadership import Leadership
from .letters import Letters
from .local_files import LocalFileStore
from .logs import Logs
from .named_environments import NamedEnvironments
from .object_files import ObjectFileStore, files_variables
from .outbox import Outbox
from .requests import Requests
from .scripts import load_into
from .secrets import Secrets
from .services import Services
from .subscriptions import Subscriber, Subscription
from .uploads import UploadStore
from .values import Values
from .workers import Workers

__all__ = [
    "RETENTION_S",
    "ApiKeys",
    "Apps",
    "BlobStore",
    "BundleStore",
    "Commands",
    "Connections",
    "DataFolder",
    "Environments",
    "FileStore",
    "Hosts",
    "IdempotencyConflict",
    "Inbox",
    "InboxClosed",
    "Lane",
    "Leadership",
    "Letters",
    "Lifecycle",
    "LocalFileStore",
    "Logs",
    "NamedEnvironments",
    "NotFound",
    "ObjectFileStore",
    "Outbox",
    "QueueFull",
    "Requests",
    "Secrets",
    "Services",
    "StaleLeader",
    "Store",
    "StoreError",
    "StoreFull",
    "StoreUnavailable",
    "StoredFile",
    "Subscription",
    "UploadStore",
    "Values",
    "Workers",
    "errors",
    "files_variables",
    "keys",
    "outcomes",
    "records",
]

#: Seconds for which a finished request and its result are kept, unless the request says otherwise.
RETENTION_S = 86_400.0
#: Waiting requests of one app beyond which new ones are refused.
MAX_QUEUE = 100_000


class Store:
    """Everything that is kept, over one connection for commands and one for listening.

    The folders under ``data_dir``: ``blobs/`` (large payloads), ``files/`` (what users see), ``uploads/`` (what
    is on its way there), ``bundles/`` (sources).
    """

    def __init__(
        self,
        redis: Redis,
        subscriber: Subscriber,
        data_dir: Path,
        retention_s: float,
        max_queue: int,
        files: Mapping[str, str],
    ) -> None:
        self._redis = redis
        self._subscriber = subscriber
        self.blobs = BlobStore(data_dir / "blobs")
        self.files: FileStore = ObjectFileStore(files) if files else LocalFileStore(data_dir / "files")
        self.uploads = UploadStore(data_dir / "uploads")
        self.bundles = BundleStore(data_dir / "bundles")
        self.requests = Requests(redis, self.blobs, retention_s, max_queue)
        self.workers = Workers(redis)
        self.apps = Apps(redis, self.requests, self.workers)
        self.hosts = Hosts(redis)
        self.services = Services(redis)
        self.commands = Commands(redis)
        self.logs = Logs(redis)
        self.environments = Environments(redis, subscriber)
        self.keys = ApiKeys(redis, data_dir)
        self.values = Values(redis)
        self.secrets = Secrets(redis, data_dir)
        self.named_environments = NamedEnvironments(redis)
        self.leader = Leadership(redis)
        self.outbox = Outbox(redis, self.requests.retention_ms)
        self.connections = Connections(redis)
        self.letters = Letters(redis, self.blobs, max_queue)

    @classmethod
    async def connect(
        cls,
        url: str,
        data_dir: Path,
        *,
        retention_s: float = RETENTION_S,
        max_queue: int = MAX_QUEUE,
        patience_s: float = PATIENCE,
        files: Mapping[str, str] | None = None,
    ) -> Store:
        """Opens the store; it lives on the running event loop.

        Args:
            url: ``unix:///path`` or ``redis://[[user:]password@]host[:port][/db]``.
            retention_s: how long finished requests and their results are kept.
            max_queue: waiting requests of one app beyond which ``submit`` raises QueueFull.
            patience_s: how long to try to connect.
            files: where users' files are kept, as ``files_variables`` found it; None: in ``data_dir``.

        Raises:
            StoreUnavailable: no answer in that time. ValueError: a malformed URL, or a bucket that cannot be used.
        """
        address = Address(url)
        redis = Redis(address)
        redis.link.on_connect.append(lambda: load_into(redis))
        try:
            await redis.link.open(patience_s)
        except BaseException:
            await redis.link.close()
            raise
        try:
            return cls(redis, Subscriber(address), data_dir, retention_s, max_queue, files or {})
        except ValueError:
            await redis.link.close()
            raise

    async def close(self) -> None:
        """Ends both connections; twice is fine."""
        await self._subscriber.close()
        await self._redis.link.close()

    async def ping(self) -> None:
        """Returns if Redis answers.

        Raises:
            StoreUnavailable.
        """
        await self._redis.command("PING", patience=2.0)

    async def subscribe(
        self, channels: Mapping[str, Callable[[bytes], None]], on_reconnect: Callable[[], None] | None = None
    ) -> Subscription:
        """Listens to channels (``keys.channel_*``) on the one connection that the process has for that.

        Args:
            on_reconnect: called after the connection was lost and restored: messages in between are gone.

        Raises:
            StoreUnavailable.
        """
        return await self._subscriber.subscribe(channels, on_reconnect)

    async def open_inbox(self, app: str, worker_id: str, revision: str, lease_ms: int = 30_000) -> Inbox:
        """The claims of one worker, which must have been placed; close it when done.

        After a deploy, workers of an earlier ``revision`` get requests until the scheduler tells them to stop, which
        it does when a worker of the new one is ready or when there is no traffic.

        Raises:
            StoreUnavailable.
        """
        inbox = Inbox(self._redis, self.requests, self.blobs, app, worker_id, lease_ms)
        await inbox.open(self._subscriber)
        return inbox

    async def sweep_blobs(self, older_than_s: float = 3600) -> int:
        """Deletes large payloads that no request and no dead letter names any more; returns how many.

        Younger ones stay: a payload is on disk before anything in Redis names it.
        """
        count = 0
        for ref, app, request_id in await asyncio.to_thread(lambda: list(self.blobs.older_than(older_than_s))):
            needed = await asyncio.gather(
                self.requests.blob_refs(app, request_id), self.letters.blob_refs(app, request_id)
            )
            if ref not in needed[0] | needed[1]:
                await asyncio.to_thread(self.blobs.delete, ref)
                count += 1
        return count
