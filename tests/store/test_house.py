"""House rules of the store: keys and their life, scripts and their headers, states and who moves them."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest

from scheduler.store import Store, keys
from scheduler.store.records import (
    Command,
    EnvironmentRecord,
    EnvironmentState,
    HostRecord,
    LogEntry,
    RequestState,
    WorkerState,
)
from scheduler.store.scripts import SCRIPTS, Script
from tests.store.scene import APP, OK, Scene, scene

FUNCTIONS = {n: f for n, f in vars(keys).items() if isinstance(f, FunctionType)}
KEYS = {name: function for name, function in FUNCTIONS.items() if not name.startswith("channel_")}
LIFE = re.compile(r"^(String|Hash|Set|Sorted set|Stream); TTL: ((?:none)?.*); (.+)\.$", re.DOTALL)
REDIS_TYPES = {"String": b"string", "Hash": b"hash", "Set": b"set", "Sorted set": b"zset", "Stream": b"stream"}
LUA = Path(keys.__file__).parent / "lua"


def life_of(function: FunctionType) -> tuple[bytes, str]:
    """Redis type and stated TTL of a key, from the last paragraph of its docstring."""
    text = " ".join((inspect.getdoc(function) or "").split("\n\n")[-1].split())
    match = LIFE.match(text)
    assert match, f"keys.{function.__name__}: the docstring must end with 'Type; TTL: ...; owner.'"
    return REDIS_TYPES[match[1]], match[2]


@pytest.mark.parametrize("name", KEYS)
def test_every_key_states_its_type_its_ttl_and_its_writer(name: str) -> None:
    _, ttl = life_of(KEYS[name])
    if "none" in ttl:
        assert "because" in ttl or "while the app exists" in ttl, "no TTL needs a reason"


async def live_through_everything(s: Scene) -> None:
    """Every verb at least once, leaving as many kinds of keys as possible behind."""
    store = s.store
    inbox = await s.worker()
    await s.submit("low", priority="low", start_timeout=60, idempotency_key="k")
    for _ in range(8):
        await s.submit()
    claim = await inbox.next()
    await store.requests.append_output(claim, "chunk", b"piece")
    await store.connections.append_input(APP, claim.request_id, 1, "messages", b"piece")
    await store.logs.append(APP, [LogEntry("", 1.0, "INFO", "line", request_id=claim.request_id)])
    await inbox.finish(claim, OK, claim_next=False)
    dead = await s.claimed_any(inbox, webhook="http://there/hook")
    await inbox.finish(dead, OK, claim_next=False)
    (delivery,) = await store.outbox.due(APP)
    await store.outbox.give_up(delivery, "status 500")
    owed = await s.claimed_any(inbox, webhook="http://there/hook")
    await inbox.finish(owed, OK, claim_next=False)
    (delivery,) = await store.outbox.due(APP, hold_s=0)
    await store.outbox.reschedule(delivery, 60)
    await store.outbox.replay(APP, owed.request_id)
    given_up = await s.claimed_any(inbox, max_attempts=1)
    await s.lose(given_up)
    await store.letters.replay(APP, given_up.request_id, "replayed")
    dropped = await s.claimed_any(inbox, max_attempts=1, webhook="http://there/hook")
    await s.lose(dropped)
    await store.letters.drop(APP, dropped.request_id)
    await store.outbox.drop(APP, dropped.request_id)
    delayed = await s.claimed_any(inbox)
    await s.lose(delayed, delay_ms=60_000)
    await s.requests.cancel(APP, await s.submit())
    await s.requests.fail_queued(APP, await s.submit(), OK)
    await s.submit(mode="direct")
    await s.requests.fail_waiting(APP, OK, mode="direct")
    await s.claimed_any(inbox)
    await inbox.heartbeat()
    await store.workers.beat(APP, "w1", 1)
    await s.worker("w2")
    await store.workers.request_stop(APP, "w2", "suspend", "idle")
    await store.workers.update(APP, "w2", state=WorkerState.SUSPENDED)
    await store.workers.resume(APP, "w2", s.epoch)
    await store.workers.retire(APP, "another one is wanted", "w2")
    await store.workers.mark_unhealthy(APP, "w2", "its check failed")
    await store.workers.request_stop(APP, "w2", "drain", "test")
    await store.workers.remove(APP, "w2", "gone", crashed=True)
    await s.requests.promote(APP, s.epoch)
    await look_at_all_of_it(s)
    await use_the_platform(store)
    idle = await s.worker("w3")
    while await store.requests.queue_size(APP) > 1:
        await idle.finish(await idle.next(), OK, claim_next=False)
    await idle._ask()  # parks it
    await s.submit("handed-over")
    await s.submit("waiting", start_timeout=60)


async def use_the_platform(store: Store) -> None:
    """What is not about requests."""
    await store.hosts.report(HostRecord("box", ("XS",), (), False, 2, 4096))
    await store.services.announce("scheduler", "box")
    await store.keys.create("alice", "laptop")
    await store.keys.of_app(APP)
    await store.values.set("alice", "scores", "best", b"1", 60)
    command_id = await store.commands.submit(APP, "w2", Command(("true",)))
    await store.commands.say(APP, "w2", command_id, "bytes", b"piece")
    await store.commands.write(APP, command_id, "stdout", b"piece")
    await store.secrets.set("alice", "main", {"HF_TOKEN": "hf_0123456789"}, exposed=True)
    await store.named_environments.create("alice", "staging", "")
    await store.environments.put(EnvironmentRecord("environment-1", EnvironmentState.BUILDING))
    await store.environments.append_log("environment-1", "line")
    await store.environments.request_build(APP, "r1")
    await store.apps.point("alice/e", "r1", auth=None, scaling=None, ephemeral=True, session_ttl_s=60)
    await store.apps.point("alice/gone", "r1", auth=None, scaling=None, ephemeral=False)
    await store.apps.delete("alice/gone")
    await store.apps.expired_sessions()
    await store.apps.set_auth(APP, "private")
    await store.apps.set_openapi(APP, "r1", "{}")
    await store.apps.drop_revision(APP, "r1")
    await store.apps.startup_failed(APP, "r1", "no card")
    await store.apps.crash_streak_ended(APP, "r1")
    await store.apps.gpu_peak(APP, "r1", 4_000)
    await store.apps.suspension_tried(APP, "r1", "")
    await store.apps.say_blocked(APP, "no card")
    await store.leader.lead("other", 1000)
    await store.leader.resign("other")


async def look_at_all_of_it(s: Scene) -> None:
    """The verbs that only read."""
    await s.store.apps.observe(APP)
    await s.requests.get(APP, "low")
    await s.requests.expired_leases(APP)
    await s.requests.overdue_starts(APP)
    await s.store.letters.list(APP)
    await s.store.letters.get(APP, "low")
    await s.store.outbox.dead(APP)


async def end_everything(s: Scene) -> None:
    """Every request ends, every worker leaves and every webhook is delivered."""
    for inbox in s.inboxes:
        for request_id, _ in inbox.held:
            await s.requests.cancel(APP, request_id)
    await s.requests.flush_queue(APP)
    for raw in await s.redis("ZRANGE", keys.leases(APP), 0, -1):
        await s.requests.cancel(APP, raw.decode())
    await s.redis("ZUNIONSTORE", keys.outbox(APP), 1, keys.outbox(APP), "WEIGHTS", 0)  # all are due
    for delivery in await s.store.outbox.due(APP):
        await s.store.outbox.delivered(delivery)
    for worker in await s.store.workers.list(APP):
        await s.store.workers.remove(APP, worker.worker_id, "done")


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of the verbs that were called."""
    names: set[str] = set()
    run = Script.__call__

    async def noting(script: Script, *arguments: Any, **named: Any) -> Any:
        names.add(script.name)
        return await run(script, *arguments, **named)

    monkeypatch.setattr(Script, "__call__", noting)
    return names


@pytest.mark.anyio
async def test_every_key_written_is_named_typed_and_ends(redis_url: str, tmp_path: Path, called: set[str]) -> None:
    """Every verb is called; each key that remains has a TTL, or its docstring says why it has none. When everything
    has ended, those without one are gone too, but for the lists of what exists."""
    patterns = {
        name: re.compile(
            "^" + re.sub("placeholder", ".+", re.escape(f(*["placeholder"] * f.__code__.co_argcount))) + "$"
        )
        for name, f in KEYS.items()
    }
    # the more specific names first: request logs look like logs, a host's orders like a host
    ordered = sorted(KEYS, key=lambda name: -len(patterns[name].pattern))
    seen: set[str] = set()
    async with scene(redis_url, tmp_path) as s:
        await live_through_everything(s)
        for raw in await s.redis("KEYS", "*"):
            name = next((n for n in ordered if patterns[n].match(raw.decode())), None)
            assert name is not None, f"{raw!r} is no key of keys.py"
            seen.add(name)
            kind, ttl = life_of(KEYS[name])
            assert await s.redis("TYPE", raw) == kind, raw
            expires = await s.redis("PTTL", raw) > 0
            if name == "request":
                final = (await s.redis("HGET", raw, "status")).decode() not in ("IN_QUEUE", "IN_PROGRESS")
                assert expires == final, raw
            elif "none" not in ttl:
                assert expires, f"{raw!r} has no TTL but keys.{name} promises one"
        assert set(SCRIPTS) == called, "the scenario must call every verb"
        assert set(KEYS) - seen <= {"parked"}, "the scenario must write every kind of key"
        await end_everything(s)
        endless = {raw.decode() for raw in await s.redis("KEYS", f"{{{APP}}}:*") if await s.redis("PTTL", raw) == -1}
        lists = {keys.alias(APP), keys.revision(APP, "r1"), keys.revisions(APP)}
        streams = {keys.queue_normal(APP), keys.queue_low(APP)}
        assert endless <= lists | streams
        assert [await s.redis("XLEN", queue) for queue in sorted(streams)] == [0, 0]


def test_states_say_who_moves_them_and_the_scripts_agree() -> None:
    source = inspect.getsource(RequestState)
    stated: dict[str, set[str]] = {}
    for state in RequestState:
        comment = re.search(rf'    {state} = "{state}"  # ([^:\n]+)', source)
        assert comment, f"{state} has no comment"
        stated[state] = set(re.findall(r"\b[a-z_]+\b", comment[1])) & set(SCRIPTS)
    moved: dict[str, set[str]] = {state: set() for state in RequestState}
    for name, script in SCRIPTS.items():
        for move in script.moves:
            before, _, after = move.partition(" -> ")
            assert before in (*RequestState, "none"), f"{name}: {move}"
            assert before not in ("COMPLETED", "ERROR", "CANCELLED"), f"{name} moves a request out of a final state"
            moved[after].add(name)
    assert moved == stated


def test_the_page_on_states_names_every_verb_that_moves_a_request() -> None:
    page = (LUA.parents[2] / "docs" / "states.md").read_text()
    verbs = {
        verb
        for row in re.findall(r"^\| [A-Z] \| ([^|]+)\|", page, re.MULTILINE)
        for verb in re.findall(r"`(\w+)`", row)
    }
    assert verbs == {name for name, script in SCRIPTS.items() if script.moves}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_names_what_it_takes(name: str) -> None:
    script = SCRIPTS[name]
    text = (LUA / f"{name}.lua").read_text()
    assert "-- RETURNS" in text
    body = script.text
    for local in (*script.key_names, *script.arg_names, *script.channel_names):
        assert len(re.findall(rf"\b{local}\b", body)) > 1, f"{local} is declared and not used"
    for own in (text, *(path.read_text() for path in (LUA / "include").glob("*.lua"))):
        code = "\n".join(line for line in own.splitlines() if not line.startswith("--"))
        assert "'kw:" not in code, "keys and channels are named in keys.py"
        assert "KEYS[" not in code, "keys have names"
        assert "'DEBUG'" not in code
        assert "os.time" not in code, "the only clock is Redis' TIME"


@pytest.mark.parametrize("name", SCRIPTS)
def test_only_what_brings_new_work_is_refused_when_memory_is_full(name: str) -> None:
    first_line = (LUA / f"{name}.lua").read_text().partition("\n")[0]
    assert first_line.startswith("#!lua")
    refused = "allow-oom" not in first_line and "no-writes" not in first_line
    assert refused == (name in {"submit", "append_input", "replay_letter", "point", "put_revision"})


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_stays_with_one_hash_tag(name: str) -> None:
    """On a cluster a script may touch one slot only."""
    tags = set()
    for key in SCRIPTS[name].key_names:
        function = KEYS[key.removesuffix("_prefix")]
        made = function(*["x"] * function.__code__.co_argcount)
        tag = re.search(r"\{(.+?)\}", made)
        tags.add(tag[1] if tag else made)
    assert len(tags) <= 1, tags
