"""How many workers an app should have: one pure function over one look at the app.

Owns scaling, keep_alive, back-off after failed starts and crashes, and the roll-over to a new revision. Leaves where a
worker runs to ``placement`` and every read, write and log line to ``reconcile``. Times are milliseconds of the Redis
server.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from fal._spec import ScalingSpec

from scheduler.store.back_off import back_off_ms
from scheduler.store.records import AppSeen, WorkerRecord, WorkerState

StopHow = Literal["drain", "kill", "idle", "suspend"]

#: Workers above max_concurrency while old ones still serve: without it, an app with a maximum of one could only
#: change its revision by refusing traffic for the length of a cold start.
ROLL_OVER_SURGE = 1

#: How long a suspended worker is kept after its last request: it takes memory of its host.
SUSPENDED_MS = 86_400_000

_STARTING = (WorkerState.PENDING, WorkerState.SETUP)
_READY = (WorkerState.IDLE, WorkerState.RUNNING)


@dataclass(frozen=True, slots=True)
class Policy:
    """What the app asks for: the alias' scaling settings and what is known of the revision that it points at.

    ``linger_ms``: how long a worker with a GPU stays past its keep_alive; whoever waits for its card may have it then.
    """

    revision: str
    scaling: ScalingSpec
    max_multiplexing: int = 1
    startup_failures: int = 0
    last_startup_failure_at_ms: int | None = None
    crash_streak: int = 0
    last_crash_at_ms: int | None = None
    linger_ms: int = 0


@dataclass(frozen=True, slots=True)
class Memory:
    """What one decision leaves for the next one about the same app.

    ``starting``: workers that were on their way to ready. One that vanishes without a word (host agent dead, record
    reaped) never reported a failed start; counting it here keeps the back-off honest.
    """

    revision: str | None = None
    starting: frozenset[str] = frozenset()
    lost_starts: int = 0
    last_lost_at_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Stop:
    """A worker to stop: ``idle`` only if it still has nothing to do, ``drain`` after what it holds, ``kill`` now.

    Where its host can, ``suspend`` takes the place of ``idle``: that is for whoever carries the decision out.
    """

    worker_id: str
    how: StopHow
    reason: str


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do now.

    Args:
        desired: workers of the current revision once this is carried out.
        start: workers of the current revision to place.
        stops: workers to stop.
        again_at_ms: when time alone would change the decision; None if only an event can.
        held: why fewer workers start than the demand asks for, in words; None if nothing is held back.
    """

    desired: int
    start: int = 0
    stops: tuple[Stop, ...] = ()
    again_at_ms: int | None = None
    held: str | None = None


@dataclass(frozen=True, slots=True)
class _Supply:
    """The workers of an app by what they are good for. Those asked to stop are no supply, they only use up room.
    Suspended ones are neither: they stand in for starts.

    ``old_...``: of an earlier revision, worn out, or unwanted by their owner; they serve until others do in
    their place.
    """

    starting: tuple[WorkerRecord, ...]
    ready: tuple[WorkerRecord, ...]
    old_starting: tuple[WorkerRecord, ...]
    old_ready: tuple[WorkerRecord, ...]
    suspended: tuple[WorkerRecord, ...]
    current_total: int
    leaving_in_flight: int
    leftover: int
    known: frozenset[str]

    @property
    def live(self) -> int:
        return len(self.starting) + len(self.ready)


def decide(policy: Policy, seen: AppSeen, memory: Memory, now_ms: int) -> tuple[Decision, Memory]:
    """The workers to start and to stop, given one look at the app.

    Args:
        policy: settings and revision.
        seen: one atomic look at demand and supply.
        memory: what the last decision about this app returned; ``Memory()`` the first time.
        now_ms: the time of the look.
    """
    supply = _sort(seen, policy.revision)
    memory = _remember_losses(policy, supply, memory, now_ms)
    target, growth_target, delay_ends = _targets(policy.scaling, policy.max_multiplexing, seen, supply, now_ms)

    start = _room_to_grow(policy.scaling, supply, growth_target)
    start, held, retry_at = _hold_back(policy, memory, supply, start, now_ms)

    failing = _failures(policy, memory) > 0 and not supply.ready
    stops, keep_alive_ends = _stops(policy, supply, target, failing, now_ms)
    stopped = {stop.worker_id for stop in stops}
    kept = [w for w in (*supply.starting, *supply.ready) if w.worker_id not in stopped]

    times = [at for at in (delay_ends, retry_at, keep_alive_ends) if at is not None]
    decision = Decision(len(kept) + start, start, stops, min(times, default=None), held)
    starting = frozenset(w.worker_id for w in supply.starting) - stopped
    return decision, replace(memory, starting=starting)


def _sort(seen: AppSeen, revision: str) -> _Supply:
    known = [w for w in seen.workers if w.state is not WorkerState.TERMINATED]
    alive = [w for w in known if w.state is not WorkerState.SUSPENDED]
    leaving = [w for w in alive if not w.takes_requests or w.state is WorkerState.DRAINING]
    staying = [w for w in alive if w.takes_requests and w.state is not WorkerState.DRAINING]
    current = [w for w in staying if w.revision == revision and w.retiring is None]
    old = [w for w in staying if w.revision != revision or w.retiring is not None]
    return _Supply(
        starting=tuple(w for w in current if w.state in _STARTING),
        ready=tuple(w for w in current if w.state in _READY),
        old_starting=tuple(w for w in old if w.state in _STARTING),
        old_ready=tuple(w for w in old if w.state in _READY),
        suspended=tuple(w for w in known if w.state is WorkerState.SUSPENDED and not w.leaves),
        current_total=sum(1 for w in alive if w.revision == revision and w.retiring is None),
        leaving_in_flight=sum(w.in_flight for w in leaving),
        leftover=sum(w.leftover for w in current),
        known=frozenset(w.worker_id for w in known),
    )


def _remember_losses(policy: Policy, supply: _Supply, memory: Memory, now_ms: int) -> Memory:
    if memory.revision != policy.revision:
        return Memory(policy.revision)
    if supply.ready:
        return Memory(policy.revision)
    if memory.starting - supply.known:
        return Memory(policy.revision, frozenset(), memory.lost_starts + 1, now_ms)
    return memory


def _targets(
    scaling: ScalingSpec, multiplexing: int, seen: AppSeen, supply: _Supply, now_ms: int
) -> tuple[int, int, int | None]:
    """Workers wanted by all demand, by the demand that has waited scaling_delay, and when that wait ends.

    Slots in which code of ended requests still runs are no help to those who wait, but no reason to stay either.
    """
    running = max(0, seen.in_progress - supply.leaving_in_flight)
    target = _wanted(scaling, multiplexing, seen.queued + running)
    if seen.queued == 0 or seen.oldest_queued_at_ms is None:
        return target, target, None
    delay_ends = seen.oldest_queued_at_ms + round(scaling.scaling_delay * 1000)
    if now_ms >= delay_ends:
        return target, _wanted(scaling, multiplexing, seen.queued + running + supply.leftover), None
    return target, _wanted(scaling, multiplexing, running), delay_ends


def _wanted(scaling: ScalingSpec, multiplexing: int, demand: int) -> int:
    needed = -(-demand // max(1, multiplexing))
    extra = max(scaling.concurrency_buffer, -(-needed * scaling.concurrency_buffer_perc // 100))
    return max(0, min(max(scaling.min_concurrency, needed + extra), scaling.max_concurrency))


def _room_to_grow(scaling: ScalingSpec, supply: _Supply, target: int) -> int:
    room = scaling.max_concurrency - supply.current_total
    if supply.old_ready:
        room = min(room, scaling.max_concurrency + ROLL_OVER_SURGE - supply.current_total - len(supply.old_ready))
    return max(0, min(target - supply.live, room))


def _failures(policy: Policy, memory: Memory) -> int:
    return max(policy.startup_failures, memory.lost_starts, policy.crash_streak)


def _hold_back(
    policy: Policy, memory: Memory, supply: _Supply, start: int, now_ms: int
) -> tuple[int, str | None, int | None]:
    """Fewer starts for a revision whose last start failed or whose workers crash: none during the back-off, then one
    at a time."""
    failures = _failures(policy, memory)
    if start == 0 or failures == 0:
        return start, None, None
    crashing = policy.crash_streak == failures
    last = max(
        policy.last_startup_failure_at_ms or 0,
        memory.last_lost_at_ms or 0,
        (policy.last_crash_at_ms or 0) if policy.crash_streak else 0,
    )
    retry_at = last + back_off_ms(failures)
    if now_ms < retry_at:
        why = "its workers fail one after the other" if crashing else f"the last {failures} start(s) failed"
        return 0, f"{why}; next try in {(retry_at - now_ms) / 1000:.1f} s", retry_at
    return max(0, min(start, 1 - len(supply.starting))), None, None


def _stops(
    policy: Policy, supply: _Supply, target: int, failing: bool, now_ms: int
) -> tuple[tuple[Stop, ...], int | None]:
    stops = [Stop(w.worker_id, "kill", w.retiring or "its revision was replaced") for w in supply.old_starting]
    stops += _over_max(policy.scaling.max_concurrency, supply)
    taken = {stop.worker_id for stop in stops}
    ready = [w for w in supply.ready if w.worker_id not in taken]
    idle_stops, ends = _past_keep_alive(policy, ready, len(ready) - target, now_ms)
    stops += idle_stops
    if failing:
        # A revision that does not start must not cost the app the workers that still serve it.
        old_stops, old_ends = _past_keep_alive(policy, supply.old_ready, len(supply.old_ready) - target, now_ms)
    else:
        leaving = max(0, len(supply.old_ready) - max(0, target - len(ready)))
        old_stops = [
            Stop(w.worker_id, "drain", w.retiring or "its revision was replaced")
            for w in _longest_idle(supply.old_ready)[:leaving]
        ]
        old_ends = None
    stops += old_stops
    stops += _suspended_for_good(policy, supply, now_ms)
    return tuple(stops), min((at for at in (ends, old_ends) if at is not None), default=None)


def _suspended_for_good(policy: Policy, supply: _Supply, now_ms: int) -> list[Stop]:
    """Suspended workers that nobody will resume: of another revision, unwanted, too many, or too long ago."""
    stops = []
    room = max(0, policy.scaling.max_concurrency - supply.live)
    for worker in sorted(supply.suspended, key=lambda w: (-(w.idle_since_ms or 0), w.worker_id)):
        since = max(worker.idle_since_ms or 0, worker.ready_at_ms or 0)
        if worker.revision != policy.revision or worker.retiring is not None:
            stops.append(Stop(worker.worker_id, "kill", worker.retiring or "its revision was replaced"))
        elif room == 0:
            stops.append(Stop(worker.worker_id, "kill", "suspended, and max_concurrency has no room for it"))
        elif now_ms - since >= SUSPENDED_MS:
            stops.append(Stop(worker.worker_id, "kill", "suspended, and not wanted for a day"))
        else:
            room -= 1
    return stops


def _over_max(maximum: int, supply: _Supply) -> list[Stop]:
    """The maximum was lowered: starting workers go first, then idle ones, and busy ones finish what they hold."""
    excess = supply.live - maximum
    if excess <= 0:
        return []
    newest_first = sorted(supply.starting, key=lambda w: (-w.created_at_ms, w.worker_id))
    kills = [Stop(w.worker_id, "kill", "max_concurrency was lowered") for w in newest_first[:excess]]
    rest = _longest_idle(supply.ready)[: excess - len(kills)]
    return kills + [Stop(w.worker_id, "drain", "max_concurrency was lowered") for w in rest]


def _past_keep_alive(
    policy: Policy, ready: list[WorkerRecord] | tuple[WorkerRecord, ...], spare: int, now_ms: int
) -> tuple[list[Stop], int | None]:
    """Idle workers whose keep_alive is over, at most ``spare``; and when the next one's ends."""
    if spare <= 0:
        return [], None
    keep_alive = policy.scaling.keep_alive
    stops: list[Stop] = []
    times: list[int] = []
    for worker in _longest_idle(ready):
        if len(stops) == spare or worker.in_flight > 0 or worker.idle_since_ms is None:
            break
        lingers = policy.linger_ms if worker.gpu_ids else 0
        ends = max(worker.idle_since_ms, worker.ready_at_ms or 0) + keep_alive * 1000 + lingers
        if now_ms < ends:
            times.append(ends)
        else:
            stops.append(Stop(worker.worker_id, "idle", f"idle for keep_alive ({keep_alive} s)"))
    return stops, min(times, default=None)


def _longest_idle(workers: list[WorkerRecord] | tuple[WorkerRecord, ...]) -> list[WorkerRecord]:
    """Those with nothing to do first, longest idle first; then the busy ones, least busy first."""

    def order(worker: WorkerRecord) -> tuple[int, int, int, str]:
        idle = worker.in_flight == 0 and worker.idle_since_ms is not None
        since = max(worker.idle_since_ms or 0, worker.ready_at_ms or 0) if idle else 0
        return (0 if idle else 1, since, worker.in_flight, worker.worker_id)

    return sorted(workers, key=order)
