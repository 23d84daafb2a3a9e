"""Secrets: sealed at rest, an owner's own, read back by nobody but the workers of their environment."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from scheduler.store import keys
from scheduler.store.signing import SEALING_FILE
from tests.store.scene import scene

pytestmark = pytest.mark.anyio
VALUE = "hf_0123456789abcdef"


async def test_values_come_back_for_those_they_are_for(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path) as s:
        secrets = s.store.secrets
        await secrets.set("alice", "main", {"HF_TOKEN": VALUE, "EMPTY_NOT": " ümläut\n"}, exposed=True)
        await secrets.set("alice", "main", {"ONLY_LISTED": "x"}, exposed=False)
        await secrets.set("alice", "staging", {"HF_TOKEN": "another"}, exposed=True)
        assert await secrets.values("alice", "main", None) == {"HF_TOKEN": VALUE, "EMPTY_NOT": " ümläut\n"}
        assert await secrets.values("alice", "main", ["ONLY_LISTED", "NEVER_SET"]) == {"ONLY_LISTED": "x"}
        assert await secrets.values("alice", "staging", None) == {"HF_TOKEN": "another"}
        assert await secrets.values("bob", "main", None) == {}
        assert [(r.name, r.exposed) for r in await secrets.list("alice", "main")] == [
            ("EMPTY_NOT", True),
            ("HF_TOKEN", True),
            ("ONLY_LISTED", False),
        ]
        await secrets.set("alice", "main", {"HF_TOKEN": "new"}, exposed=True)
        assert (await secrets.values("alice", "main", ["HF_TOKEN"])) == {"HF_TOKEN": "new"}
        assert await secrets.unset("alice", "main", "HF_TOKEN")
        assert not await secrets.unset("alice", "main", "HF_TOKEN")
        assert await secrets.values("alice", "main", ["HF_TOKEN"]) == {}


async def test_neither_redis_nor_the_disk_holds_a_value(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path) as s:
        await s.store.secrets.set("alice", "main", {"HF_TOKEN": VALUE}, exposed=True)
        kept = await s.redis("HGETALL", keys.secrets("alice", "main"))
        assert VALUE.encode() not in b"".join(kept)
        key_file = tmp_path / SEALING_FILE
        assert key_file.stat().st_mode & 0o777 == 0o600
        assert all(VALUE.encode() not in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())


async def test_a_sealed_value_cannot_take_anothers_place(redis_url: str, tmp_path: Path) -> None:
    """Whoever could write to Redis put another owner's sealed value under a name of theirs and read it in an app."""
    async with scene(redis_url, tmp_path) as s:
        await s.store.secrets.set("alice", "main", {"HF_TOKEN": VALUE}, exposed=True)
        sealed = await s.redis("HGET", keys.secrets("alice", "main"), "HF_TOKEN")
        for owner, env, name in (("bob", "main", "HF_TOKEN"), ("alice", "dev", "HF_TOKEN"), ("alice", "main", "OTHER")):
            await s.redis("HSET", keys.secrets(owner, env), name, sealed)
            with pytest.raises(ValueError, match=f"the secret {name} cannot be read.*fal secrets set {name}"):
                await s.store.secrets.values(owner, env, [name])


async def test_a_lost_key_is_said_with_what_to_do(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path) as s:
        await s.store.secrets.set("alice", "main", {"HF_TOKEN": VALUE}, exposed=True)
        (tmp_path / SEALING_FILE).unlink()
        with pytest.raises(ValueError, match=r"sealed with another key than .*secrets\.key"):
            await s.store.secrets.values("alice", "main", None)
        (tmp_path / SEALING_FILE).write_text("no key\n")
        with pytest.raises(ValueError, match="put the right file back"):
            await s.store.secrets.set("alice", "main", {"HF_TOKEN": VALUE}, exposed=True)
        assert orjson.loads(await s.redis("HGET", keys.secrets("alice", "main"), "HF_TOKEN"))["exposed"]
