"""Workers as everyone sees them: where they were placed, how far they are, and who asked them to stop.

The verbs that give requests to workers keep their load and idle time; nobody reports those.
"""

from __future__ import annotations

import asyncio
from typing import Literal

import orjson

from . import keys
from .connection import Arg, Redis
from .records import WorkerRecord, WorkerState
from .scripts import SCRIPTS

Stop = Literal["drain", "kill", "idle", "suspend"]

#: As ``far_off`` of the scripts' clock.
FAR_OFF_MS = 3_600_000


class Workers:
    """Verbs on workers."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def place(self, w: WorkerRecord, epoch: int) -> None:
        """Records a worker and orders its host to start it.

        Raises:
            StaleLeader: ``epoch`` is not the leader's any more. StoreUnavailable.
        """
        fields: dict[str, Arg] = {
            "revision": w.revision,
            "host": w.host,
            "state": w.state,
            "machine_type": w.machine_type,
            "gpu_ids": ",".join(str(gpu) for gpu in w.gpu_ids),
            "gpu_memory": str(w.gpu_memory_mb),
            "device": w.device,
            "cpu_fallback_for": w.cpu_fallback_for or "",
            "stages": orjson.dumps(w.stages),
        }
        flat: list[Arg] = [value for item in fields.items() for value in item]
        fields["worker_id"] = w.worker_id
        flat += ["worker_id", w.worker_id]
        await SCRIPTS["place"](self._redis, w.app, worker_id=w.worker_id, by_epoch=epoch, rest=flat)
        orders = keys.host_orders(w.host)
        await asyncio.gather(
            self._redis.command("HSET", orders, w.worker_id, w.app),
            self._redis.command("EXPIRE", orders, 86400),
            self._redis.command("PUBLISH", keys.channel_host(w.host), w.worker_id),
        )

    async def orders(self, host: str) -> dict[str, str]:
        """What the host shall run: worker id to app. ``remove`` takes a worker off the list."""
        reply = await self._redis.command("HGETALL", keys.host_orders(host))
        return {reply[i].decode(): reply[i + 1].decode() for i in range(0, len(reply), 2)}

    async def get(self, app: str, worker_id: str) -> WorkerRecord | None:
        """One worker; ended ones are known for an hour."""
        reply = await self._redis.command("HGETALL", keys.worker(app, worker_id))
        return worker_record(app, _text(reply)) if reply else None

    async def update(
        self,
        app: str,
        worker_id: str,
        *,
        state: WorkerState | None = None,
        reason: str | None = None,
        stages: dict[str, float] | None = None,
        device: str | None = None,
        ready: bool = False,
        retiring: str | None = None,
        start_kind: str | None = None,
    ) -> bool:
        """The supervisor tells how far its worker is; a change of state wakes the scheduler.

        Args:
            stages: seconds of the start's stages so far. ready: the runner takes requests from now on.
            retiring: why another worker should take its place.
            start_kind: how its process came to be, ``zygote`` or ``spawn``.

        Returns:
            False when the record is gone: the worker must stop.
        """
        rest: list[Arg] = []
        if reason is not None:
            rest += ["reason", reason]
        if stages is not None:
            rest += ["stages", orjson.dumps(stages)]
        if device is not None:
            rest += ["device", device]
        if retiring is not None:
            rest += ["retiring", retiring]
        if start_kind is not None:
            rest += ["start_kind", start_kind]
        done = await SCRIPTS["update_worker"](
            self._redis, app, worker_id=worker_id, state=state or "", ready="1" if ready else "", rest=rest
        )
        return bool(done)

    async def beat(self, app: str, worker_id: str, in_flight: int) -> str | None:
        """A sign of life.

        Args:
            in_flight: attempts at the runner; those that it holds no lease for are left over from ended requests.

        Returns:
            ``"drain"``, ``"kill"``, ``"suspend"`` or ``"resume"`` when that was asked for, ``"gone"`` when the record
            vanished, else None.
        """
        reply = await SCRIPTS["beat"](self._redis, app, worker_id=worker_id, in_flight=in_flight)
        return reply.decode() or None

    async def request_stop(self, app: str, worker_id: str, how: Stop, reason: str) -> bool:
        """Asks a worker to stop; from here on it gets no request.

        Args:
            how: ``"drain"`` finishes what it has, ``"kill"`` does not; ``"idle"`` is a drain only if it has nothing;
                ``"suspend"`` likewise, and frees its cards without ending it.

        Returns:
            False when it is gone or, with ``"idle"`` and ``"suspend"``, has something to do.
        """
        return bool(await SCRIPTS["request_stop"](self._redis, app, worker_id=worker_id, how=how, why=reason))

    async def resume(self, app: str, worker_id: str, epoch: int) -> bool:
        """Has a suspended worker take its cards again; False when it is not suspended (any more).

        Raises:
            StaleLeader: ``epoch`` is not the leader's any more. StoreUnavailable.
        """
        return bool(await SCRIPTS["resume_worker"](self._redis, app, worker_id=worker_id, by_epoch=epoch))

    async def request_stop_all(self, app: str, how: Stop, reason: str, *, but: str | None = None) -> int:
        """Asks every worker of the app to stop, but for those of revision ``but``; returns how many there were."""
        going = [worker for worker in await self.list(app) if worker.revision != but]
        asked = await asyncio.gather(*(self.request_stop(app, w.worker_id, how, reason) for w in going))
        return sum(asked)

    async def retire(self, app: str, why: str, worker_id: str | None = None) -> int:
        """Has one worker, or all, replaced: each serves on until another one is ready in its place.

        Without demand for another one it just leaves. Returns how many; those that stop anyway are not counted.
        """
        count: int = await SCRIPTS["retire"](self._redis, app, worker_id=worker_id or "", why=why)
        return count

    async def mark_unhealthy(self, app: str, worker_id: str, why: str) -> bool:
        """A worker fails its health check: it gets no request any more, and another one takes its place.

        Its revision counts it as a crash; the more of them one after the other, the later the next one starts.

        Returns:
            False when it is gone or was told to stop, which says all.
        """
        return bool(await SCRIPTS["mark_unhealthy"](self._redis, app, worker_id=worker_id, why=why))

    async def remove(self, app: str, worker_id: str, reason: str, *, crashed: bool = False) -> None:
        """The worker has ended: what it still held counts as lost at once, and its host's order is done.

        Args:
            crashed: it was ready, and nobody wished its end.
        """
        host = await SCRIPTS["remove_worker"](
            self._redis, app, worker_id=worker_id, why=reason, crashed="1" if crashed else ""
        )
        if host is not None:
            await self._redis.command("HDEL", keys.host_orders(host.decode()), worker_id)

    async def drop_order(self, host: str, worker_id: str) -> None:
        """Takes a worker off its host's list whose record is gone, which ``remove`` could not find any more."""
        await self._redis.command("HDEL", keys.host_orders(host), worker_id)

    async def silent(self, app: str, now_ms: int, older_than_ms: int) -> list[WorkerRecord]:
        """Workers without a sign of life for longer than this; one that never gave any counts from its placing.

        A sign of the far future is one from before the server's clock was put back.
        """
        lately = range(now_ms - older_than_ms, now_ms + FAR_OFF_MS)
        return [w for w in await self.list(app) if (w.beat_at_ms or w.created_at_ms) not in lately]

    async def list(self, app: str) -> list[WorkerRecord]:
        """The app's living workers, oldest first."""
        ids = await self._redis.command("SMEMBERS", keys.workers(app))
        found = await asyncio.gather(*(self.get(app, worker_id.decode()) for worker_id in ids))
        return sorted((w for w in found if w is not None), key=lambda w: (w.created_at_ms, w.worker_id))


def _text(reply: list[bytes]) -> dict[str, str]:
    return {reply[i].decode(): reply[i + 1].decode() for i in range(0, len(reply), 2)}


def worker_record(app: str, fields: dict[str, str]) -> WorkerRecord:
    """A worker's hash as a record."""

    def number(name: str) -> int | None:
        return int(fields[name]) if fields.get(name) else None

    return WorkerRecord(
        app=app,
        worker_id=fields["worker_id"],
        revision=fields["revision"],
        host=fields["host"],
        state=WorkerState(fields["state"]),
        machine_type=fields["machine_type"],
        gpu_ids=tuple(int(gpu) for gpu in fields["gpu_ids"].split(",") if gpu),
        created_at_ms=int(fields["created_at"]),
        device=fields.get("device", "cpu"),
        cpu_fallback_for=fields.get("cpu_fallback_for") or None,
        ready_at_ms=number("ready_at"),
        idle_since_ms=number("idle_since"),
        beat_at_ms=number("beat_at"),
        in_flight=number("in_flight") or 0,
        leftover=number("leftover") or 0,
        served=number("served") or 0,
        stop_requested=fields.get("stop_requested") or None,
        reason=fields.get("reason") or None,
        stages=orjson.loads(fields.get("stages") or "{}"),
        gpu_memory_mb=int(fields.get("gpu_memory", "0")),
        retiring=fields.get("retiring") or None,
        start_kind=fields.get("start_kind") or None,
        unhealthy=fields.get("unhealthy") == "1",
    )
