"""Hosts and what they offer, as their agents report it."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson

from . import keys
from .connection import Redis
from .records import HostRecord
from .scripts import SCRIPTS


class Hosts:
    """Verbs on hosts."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def report(self, host: HostRecord, ttl_s: float = 15) -> None:
        """The host is alive and offers this; it counts as dead ``ttl_s`` seconds after its last report."""
        record = {
            "machine_types": host.machine_types,
            "gpus": host.gpus,
            "cpu_fallback": host.cpu_fallback,
            "cpus": host.cpus,
            "memory_mb": host.memory_mb,
            "suspends": host.suspends,
            "room_cores": host.room_cores,
            "room_mb": host.room_mb,
        }
        await asyncio.gather(
            SCRIPTS["report_host"](
                self._redis, host.host, rest=["offer", orjson.dumps(record), "ttl_ms", int(ttl_s * 1000)]
            ),
            self._redis.command("SADD", keys.hosts(), host.host),
        )

    async def list(self) -> list[HostRecord]:
        """Hosts that reported within the last day, by name; ``alive`` says whether they still do."""
        names = sorted(name.decode() for name in await self._redis.command("SMEMBERS", keys.hosts()))
        clock, *found = await asyncio.gather(
            self._redis.command("TIME"), *(self._redis.command("HGETALL", keys.host(name)) for name in names)
        )
        now = int(clock[0]) * 1000 + int(clock[1]) // 1000
        gone = [name for name, reply in zip(names, found, strict=True) if not reply]
        if gone:
            await self._redis.command("SREM", keys.hosts(), *gone)
        return [_host_record(name, reply, now) for name, reply in zip(names, found, strict=True) if reply]


def _host_record(name: str, reply: list[bytes], now: int) -> HostRecord:
    fields = {reply[i]: reply[i + 1] for i in range(0, len(reply), 2)}
    offer: dict[str, Any] = orjson.loads(fields[b"offer"])
    return HostRecord(
        host=name,
        machine_types=tuple(offer["machine_types"]),
        gpus=tuple((index, model, memory, tuple(types)) for index, model, memory, types in offer["gpus"]),
        cpu_fallback=offer["cpu_fallback"],
        cpus=offer["cpus"],
        memory_mb=offer["memory_mb"],
        suspends=offer.get("suspends", 0),
        room_cores=offer.get("room_cores", 0),
        room_mb=offer.get("room_mb", 0),
        alive=now - int(fields[b"seen_at"]) < int(fields[b"ttl_ms"]),
    )
