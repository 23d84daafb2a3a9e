"""Every guard of the Lua verbs, and what the script looks like without it.

A guard that no test can miss, because another one behind it catches the same, says so in ``equivalent``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from scheduler.store import keys

LUA = Path(keys.__file__).parent / "lua"


@dataclass(frozen=True)
class Guard:
    """One guard.

    Args:
        script: file below ``lua/`` without its ending.
        what: the promise that falls with it.
        text: the guard as it stands there, exactly once.
        without: what stands there in the mutant.
        equivalent: why no test can tell the difference.
    """

    script: str
    what: str
    text: str
    without: str
    equivalent: str = ""

    @property
    def path(self) -> Path:
        return Path(f"{self.script}.lua")

    def taken_out_of(self, text: str) -> str:
        """The mutant.

        Raises:
            ValueError: the guard is not there (any more), or more than once.
        """
        if text.count(self.text) != 1:
            raise ValueError(
                f"{self.script}.lua holds {self.text!r} {text.count(self.text)} times, not once: "
                f"bring the guard {self.what!r} in tests/mutations/guards.py up to date"
            )
        return text.replace(self.text, self.without)


_FINISH = (
    Guard("finish", "a late attempt is refused", "r.attempt == attempt and ", ""),
    Guard("finish", "another worker is refused", " and r.worker == worker_id then", " then"),
    Guard("finish", "what has ended stays", "if r.status == 'IN_PROGRESS' then", "if r.status ~= 'X' then"),
    Guard("finish", "asked twice, it answers the same", "r.ended_by == 'finish'", "false"),
    Guard("finish", "a worker told to stop claims nothing", "claim_more == '1' and not why", "claim_more == '1'"),
    Guard("finish", "it claims only when asked to", "if claim_more == '1' and not why", "if not why"),
    Guard("finish", "a removed worker's record stays as it is", "if why ~= 'gone' and", "if"),
)
_HEARTBEAT = (
    Guard("heartbeat", "what has ended is not renewed", "r[1] == 'IN_PROGRESS' and ", ""),
    Guard("heartbeat", "a late attempt is told to stop", "r[2] == attempt and ", ""),
    Guard("heartbeat", "another worker is told to stop", " and r[3] == worker_id", ""),
    Guard(
        "heartbeat",
        "it makes no lease",
        "'XX', now",
        "now",
        equivalent="a request in progress has a lease: the check of its state, in the same script, says so first",
    ),
)
_RETRY = (
    Guard("retry", "a former leader is refused", "if stale_leader(by_epoch)", "if false"),
    Guard("retry", "a late attempt is refused", "r.attempt ~= attempt or ", ""),
    Guard("retry", "another worker is refused", " or r.worker ~= worker_id", ""),
    Guard("retry", "asked twice, it counts once", "if r.status == 'IN_QUEUE' then", "if false then"),
    Guard("retry", "what has ended stays", "if r.status ~= 'IN_PROGRESS' then", "if false then"),
    Guard("retry", "what ended otherwise is superseded", "r.ended_by == 'retry' and", "true and"),
    Guard("retry", "a renewed lease is alive", "if lease and tonumber(lease) > now", "if false"),
    Guard("retry", "a lease of another time is none", " and tonumber(lease) < far_off", ""),
    Guard("retry", "only the reaper looks at the lease", "if by_epoch ~= '' then", "if true then"),
    Guard("retry", "crashes are counted", "redis.call('HINCRBY', key, 'crashes', 1)", "crashes"),
    Guard("retry", "suspects run alone first", "tonumber(suspects) > 1 and r.solo ~= '1'", "false"),
    Guard("retry", "a crash alone counts", "tonumber(suspects) > 1 and r.solo ~= '1'", "true"),
    Guard("retry", "a suspect is marked", "redis.call('HSET', key, 'solo', '1')", "local _"),
    Guard("retry", "what has not begun costs no attempt", "redis.call('HINCRBY', key, 'max_attempts', 1)", ""),
    Guard("retry", "a direct call that has not begun waits on", "  used_up = false\n", "\n"),
    Guard("raise_gpu_peak", "a peak only rises", "if tonumber(mb) <= ", "if -1 > "),
    Guard("raise_gpu_peak", "of a revision that is there", "'EXISTS', revision) == 0", "'EXISTS', revision) == 2"),
    Guard("include/crashing", "a worker crashes once", "redis.call('HSETNX', worker, 'crashed', '1') == 0", "false"),
    Guard("include/crashing", "a few crashes are no streak", "ZCARD', window) < 5", "ZCARD', window) < 1"),
    Guard("include/crashing", "one that no request is to blame for is", "not certain and ", ""),
    Guard("include/crashing", "a streak goes on", "streak == 0 and ", ""),
    Guard(
        "include/crashing",
        "only a revision that is there has one",
        "if redis.call('EXISTS', revision)",
        "if redis.call('EXISTS', window)",
    ),
    Guard("retry", "only crashes count", "local accused = crashed == '1'", "local accused = true"),
    Guard("retry", "the first fault accuses the GPU", "accused = first and first ~= faulted_on", "accused = true"),
    Guard("retry", "a fault elsewhere accuses the request", "first and first ~= faulted_on", "false"),
    Guard("retry", "direct calls are not tried again", "r.mode == 'direct' or tonumber", "tonumber"),
    Guard("retry", "attempts are limited", "tonumber(r.attempt) >= tonumber(r.max_attempts)", "false"),
    Guard("retry", "crashes are limited", "used_up or crashes >= 3 then", "used_up then"),
    Guard("retry", "the worker's slot is free again", "release_slot(worker_id)", ""),
    Guard("retry", "the lease goes", "leave_queue(request_id, r)\n", "\n"),
    Guard("retry", "a pause keeps the start deadline", "if r.start_deadline ~= '' then", "if false then"),
)
_LETTERS = (
    Guard("retry", "a budget is a limit", "> tonumber(budget) then used_up = true end", "> 99 then used_up = true end"),
    Guard("retry", "what is given up leaves a letter", "keep_letter(request_id, r,", "tostring(request_id, r,"),
    Guard("include/lettering", "a direct call leaves none", "if r.mode == 'direct' then return end", ""),
    Guard("include/lettering", "letters are bounded", "- 1000", "- 1000000"),
    Guard(
        "replay_letter",
        "asked twice, it is one request",
        "if l[5] == request_id or redis.call('EXISTS', request_prefix .. request_id) == 1 then",
        "if false then",
    ),
    Guard("replay_letter", "a letter is replayed once", "if l[5] and again ~= '1' then", "if false then"),
    Guard("replay_letter", "an app must exist", "if redis.call('EXISTS', alias) == 0 then", "if false then"),
    Guard("replay_letter", "the queue is bounded", "if ahead >= tonumber(cap) then", "if false then"),
    Guard("replay_webhook", "only what has ended has one", "(r[1] ~= 'COMPLETED' and r[1] ~= 'ERROR') or ", ""),
    Guard("replay_webhook", "only what was wanted is sent", " or (r[2] or '') == ''", ""),
    Guard(
        "replay_webhook",
        "one on its way stays so",
        "if not redis.call('ZSCORE', outbox, request_id) then",
        "if true then",
    ),
)
_LEADER = (
    Guard("promote", "a former leader is refused", "if stale_leader(by_epoch)", "if false"),
    Guard(
        "promote",
        "only what waits is promoted",
        "r[1] == 'IN_QUEUE' and r[2] == ''",
        "true",
        equivalent="every other way out of the pause takes the entry out of `delayed` in its own script",
    ),
    Guard("promote", "an entry is promoted once", "redis.call('ZREM', delayed, id)", ""),
    Guard("promote", "not before its time", "'-inf', now", "'-inf', '+inf'"),
    Guard("place", "a former leader is refused", "if stale_leader(by_epoch)", "if false"),
    Guard("lead", "one leads", "if holder then return 0 end", ""),
    Guard("lead", "a lead runs out", ", 'PX', ttl_ms)", ")"),
    Guard(
        "lead",
        "a new lead has a new epoch",
        "redis.call('INCR', leader_epoch)",
        "redis.call('SET', leader_epoch, 1) and 1",
    ),
    Guard("resign", "only the leader resigns", "redis.call('GET', leader) == scheduler_id", "true"),
    Guard("include/leading", "an older epoch is stale", "tonumber(by_epoch) <", "-1 >"),
    Guard("include/leading", "the epoch is remembered", "redis.call('SET', epoch, by_epoch, ", "tostring("),
)
_CANCEL = (
    Guard(
        "cancel",
        "what has ended stays",
        "r.status ~= 'IN_QUEUE' and r.status ~= 'IN_PROGRESS' then",
        "false then",
    ),
    Guard("cancel", "asked twice, it answers the same", "by[1] == token and by[2] or ", ""),
    Guard("cancel", "only the same call answers the same", "by[1] == token and by[2]", "by[2]"),
    Guard("cancel", "the worker's slot is free again", "release_slot(r.worker)", "local _"),
    Guard(
        "cancel", "the worker is told", "redis.call('PUBLISH', channel_worker_prefix", "tostring(channel_worker_prefix"
    ),
    Guard("fail_queued", "what runs may end", "if r.status ~= 'IN_QUEUE' then", "if false then"),
    Guard("fail_queued", "asked twice, it answers the same", "r.ended_by == 'fail_queued' and 1 or 0", "0"),
    Guard("fail_waiting", "what runs may end", "r.status == 'IN_QUEUE' and ", ""),
    Guard("fail_waiting", "only the mode asked for", "(mode == '' or r.mode == mode)", "true"),
    Guard("issue_app_key", "no key for an app that is gone", "redis.call('EXISTS', alias) == 0", "false"),
    Guard("issue_app_key", "one key per app", "if known[1] and known[2] ~= '1' then return known[1] end", ""),
    Guard("issue_app_key", "a revoked key is replaced", " and known[2] ~= '1'", ""),
    Guard("retire_app", "its key goes with the app", "redis.call('DEL', api_key)\n", ""),
    Guard("fail_waiting", "only the caller asked for", "(caller == '' or is_from(id))", "true"),
)
_CLAIM = (
    Guard("claim", "a worker told to stop gets nothing", "local why = unfit(seen)", "local why"),
    Guard("claim", "what it holds unheard comes first", "if #found > 0 then return found end", ""),
    Guard("claim", "an attempt that it knows is not given again", "and not known[id .. ' ' .. r.attempt]", ""),
    Guard(
        "include/claiming",
        "only what waits is given",
        "r[1] ~= 'IN_QUEUE' or r[2] ~= sid",
        "r[2] ~= sid",
        equivalent="who does not wait has no entry under its sid: a claim empties it, an end deletes the entry",
    ),
    Guard("include/claiming", "an old entry is not given", "r[1] ~= 'IN_QUEUE' or r[2] ~= sid", "r[1] ~= 'IN_QUEUE'"),
    Guard("include/claiming", "not after its deadline", "tonumber(deadline) <= now", "false"),
    Guard(
        "include/claiming",
        "an entry is given once",
        "redis.call('XDEL', queue, sid)\n      if deadline",
        "if deadline",
    ),
    Guard("include/claiming", "a claim has a lease", "redis.call('ZADD', leases, now + lease_ms, id)", ""),
    Guard("include/claiming", "a busy worker is not handed more", "redis.call('ZREM', parked, worker_id) --", "--"),
    Guard(
        "include/claiming",
        "a deleted app runs nothing",
        "if redis.call('EXISTS', alias) == 0 then return nil",
        "if false then return nil",
    ),
    Guard("include/claiming", "low priority is never starved", "if turn % 8 == 0 then", "if false then"),
    Guard(
        "include/claiming",
        "normal comes before low",
        "return take_from(queue_normal) or take_from(queue_low)",
        "return take_from(queue_low) or take_from(queue_normal)",
    ),
    Guard(
        "include/claiming",
        "a removed worker gets nothing",
        "seen[1] == 'TERMINATED' then return 'gone'",
        "false then return 'gone'",
    ),
    Guard("include/claiming", "a worker told to stop gets nothing", "if seen[5] and seen[5] ~= ''", "if false"),
    Guard("include/claiming", "a lost group is made anew", "if read and read.err then", "if false then"),
)
_SUBMIT = (
    Guard(
        "submit",
        "one id, one request",
        "if redis.call('EXISTS', key) == 1 then return",
        "if false then return",
    ),
    Guard("submit", "one idempotency key, one request", "if known then", "if false then"),
    Guard("submit", "one idempotency key, one body", "if print ~= fingerprint", "if false"),
    Guard(
        "submit",
        "the key is remembered",
        "redis.call('SET', idempotency_prefix .. idempotency_key,",
        "tostring(",
    ),
    Guard("submit", "an app must exist", "if not revision then return", "if false then return"),
    Guard("submit", "the queue is bounded", "ahead >= tonumber(cap) or", "false or"),
    Guard("submit", "the caller's own bound", "ahead >= tonumber(max_queue)", "false"),
    Guard(
        "submit",
        "a worker told to stop is handed nothing",
        "(w[2] and w[2] ~= '') or not w[3]",
        "not w[3]",
        equivalent="request_stop takes the worker out of `parked` in the script that marks it",
    ),
    Guard(
        "submit",
        "a removed worker is handed nothing",
        " or w[4] == 'TERMINATED'",
        "",
        equivalent="remove_worker takes the worker out of `parked` in the script that marks it",
    ),
    Guard(
        "submit",
        "a hand-over that nobody hears is none",
        "channel_worker_prefix .. id, message) > 0",
        "channel_worker_prefix .. id, message) >= 0",
    ),
    Guard("submit", "nobody is overtaken", "if ahead > 0 then return nil end", ""),
    Guard("submit", "a worker parked long ago is not believed", "or tonumber(last[2]) < now", ""),
    Guard("submit", "the current revision comes first", "if w[1] ~= revision then", "if false then"),
    Guard("submit", "a hand-over has a lease", "redis.call('ZADD', leases, now + w[3], request_id)", ""),
    Guard("submit", "a deadline is watched", "if deadline ~= '' then redis.call", "if false then redis.call"),
)
_ENDING = (
    Guard("include/ending", "the lease goes", "redis.call('ZREM', leases, id)", ""),
    Guard(
        "include/ending",
        "the entry goes",
        "redis.call('XDEL', r.priority == 'low' and queue_low or queue_normal, r.sid)",
        "local _",
    ),
    Guard("include/ending", "the pause goes", "redis.call('ZREM', delayed, id)", ""),
    Guard("include/ending", "the deadline goes", "redis.call('ZREM', deadlines, id)", ""),
    Guard("include/ending", "a cancelled request sends no webhook", " and status ~= 'CANCELLED' then", " then"),
    Guard("include/ending", "a webhook is owed", "redis.call('ZADD', outbox, now, id)", ""),
    Guard("include/ending", "what has ended expires", "redis.call('PEXPIRE', key, keep)", ""),
    Guard("include/ending", "the payload goes", "'call', '', 'body', '')", "'ended', '1')"),
    Guard("include/ending", "an earlier attempt's error goes", "or r.attempt ~= '1' then", "then"),
    Guard("include/ending", "the waiting gateway is told", "if r.gateway ~= '' then", "if false then"),
    Guard("include/ending", "its log expires with it", "if r.logged then", "if false then"),
)
_WORKERS = (
    Guard("mark_unhealthy", "one that is gone stays as it is", "seen[1] == 'TERMINATED' or ", ""),
    Guard("mark_unhealthy", "who told it to stop has said why", " or seen[2] then", " then"),
    Guard("mark_unhealthy", "it is handed nothing more", "redis.call('ZREM', parked, worker_id)", ""),
    Guard(
        "mark_unhealthy",
        "a successor starts at once",
        "wake_scheduler()",
        "",
        equivalent="it counts as a crash of its revision in the same script, and that wakes the scheduler, too",
    ),
    Guard("remove_worker", "what it held is lost at once", "redis.call('ZADD', leases, 'XX', now, id)", ""),
    Guard("remove_worker", "it is handed nothing more", "redis.call('ZREM', parked, worker_id)", ""),
    Guard("remove_worker", "its consumer goes", "redis.pcall('XGROUP', 'DELCONSUMER',", "tostring("),
    Guard(
        "request_stop",
        "a busy worker is not idle",
        "if (how == 'idle' or how == 'suspend') and #held_by(worker_id) > 0",
        "if false",
    ),
    Guard("request_stop", "a kill stays one", "seen[2] == 'kill' or", ""),
    Guard("request_stop", "who leaves is not suspended", "(seen[2] and how == 'suspend')", "false"),
    Guard("resume_worker", "only the leader has workers resumed", "if stale_leader(by_epoch)", "if false"),
    Guard("resume_worker", "only who is suspended comes back", "if seen[1] ~= 'SUSPENDED' or", "if false and"),
    Guard(
        "update_worker",
        "who is back takes requests",
        "== 'resume' then",
        "== '' then",
    ),
    Guard("request_stop", "it is handed nothing more", "redis.call('ZREM', parked, worker_id)", ""),
    Guard("update_worker", "a removed worker stays removed", " or before == 'TERMINATED'", ""),
    Guard("update_worker", "a draining worker is handed nothing", "if after == 'DRAINING' then", "if false then"),
    Guard("beat", "a removed worker is told", " or seen[1] == 'TERMINATED'", ""),
    Guard(
        "startup_failed",
        "asked twice, it counts once",
        "redis.call('HGET', revision, 'startup_token') == token",
        "false",
    ),
    Guard(
        "append_output",
        "a late attempt's output is refused",
        "r[1] ~= 'IN_PROGRESS' or r[2] ~= attempt or ",
        "r[1] ~= 'IN_PROGRESS' or ",
    ),
    Guard("append_output", "output after the end is refused", "r[1] ~= 'IN_PROGRESS' or ", ""),
    Guard("append_output", "another worker's output is refused", " or r[3] ~= worker_id", ""),
    Guard("expired_leases", "a lease of another time is none", "far_off, '+inf'", "'(+inf', '+inf'"),
    Guard("promote", "a back-off of another time is over", "far_off, '+inf'", "'(+inf', '+inf'"),
    Guard(
        "append_input",
        "nobody reads what comes after the end",
        "if r[1] ~= 'IN_PROGRESS' then return -1 end",
        "",
    ),
    Guard("append_input", "input that nobody reads goes by itself", "redis.call('PEXPIRE', key, 600000)", ""),
    Guard("expired_leases", "a living lease is not expired", "'-inf', now", "'-inf', '+inf'"),
    Guard("overdue_starts", "not before its time", "'-inf', now", "'-inf', '+inf'"),
)
_WEBHOOKS = (
    Guard("webhooks_due", "a delivery is held by one sender", "redis.call('ZADD', outbox, now + hold_ms, due[i])", ""),
    Guard("webhooks_due", "what was given and not heard is given again", "if heard then", "if false then"),
    Guard("webhooks_due", "not before its time", "'-inf', now", "'-inf', '+inf'"),
    Guard(
        "webhook_later",
        "what is over is not tried again",
        "if not redis.call('ZSCORE', outbox, request_id)",
        "if false",
    ),
    Guard(
        "webhook_over",
        "asked twice, it counts once",
        "if redis.call('ZREM', outbox, request_id) == 0 then return 0 end",
        "redis.call('ZREM', outbox, request_id)",
    ),
)
_MEMORY = (
    *(
        Guard(verb, "running work ends when memory is full", "#!lua flags=allow-oom", "#!lua")
        for verb in ("claim", "finish", "heartbeat", "retry", "promote", "cancel", "fail_queued", "lead")
    ),
    Guard("submit", "new work is what is refused first", "#!lua\n", "#!lua flags=allow-oom\n"),
)

GUARDS: tuple[Guard, ...] = (
    *(
        *_FINISH,
        *_HEARTBEAT,
        *_RETRY,
        *_LETTERS,
        *_LEADER,
        *_CANCEL,
        *_CLAIM,
        *_SUBMIT,
        *_ENDING,
        *_WORKERS,
        *_WEBHOOKS,
        *_MEMORY,
    ),
)

#: The promises that matter most: these are checked in every test run, the rest by ``make mutations``.
_VITAL = {
    ("finish", "a late attempt is refused"),
    ("finish", "what has ended stays"),
    ("finish", "asked twice, it answers the same"),
    ("heartbeat", "a late attempt is told to stop"),
    ("retry", "a late attempt is refused"),
    ("retry", "a former leader is refused"),
    ("retry", "a renewed lease is alive"),
    ("retry", "crashes are counted"),
    ("retry", "suspects run alone first"),
    ("promote", "a former leader is refused"),
    ("cancel", "what has ended stays"),
    ("submit", "one id, one request"),
    ("submit", "one idempotency key, one request"),
    ("submit", "a hand-over that nobody hears is none"),
    ("include/claiming", "an old entry is not given"),
    ("include/claiming", "not after its deadline"),
    ("include/ending", "a cancelled request sends no webhook"),
    ("finish", "running work ends when memory is full"),
}
VITAL = tuple(guard for guard in GUARDS if (guard.script, guard.what) in _VITAL)
