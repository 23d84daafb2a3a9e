"""Every key and channel of ours in Redis, one function each; nobody else spells a name.

A docstring's last line is read by the tests: ``Type; TTL; who writes it``. Keys of one app share the hash tag
``{owner/app}``, so that one script can touch them all on a cluster. Channels carry no state: a lost message is made
good by a poll.
"""

from __future__ import annotations

from urllib import parse

# --- an app's requests -------------------------------------------------------------------------------------------


def request(app: str, request_id: str) -> str:
    """The truth about one request: state, attempt, call, result.

    Hash; TTL: retention after the end, none before it because an accepted request must end; requests.
    """
    return f"{{{app}}}:request:{request_id}"


def queue_normal(app: str) -> str:
    """Order of waiting requests of normal priority; a claim reads its entry through the consumer group ``workers``,
    takes it out and leaves a lease instead.

    Stream; TTL: none while the app exists, because every entry is deleted when its request starts or ends; requests.
    """
    return f"{{{app}}}:queue:normal"


def queue_low(app: str) -> str:
    """The same for low priority.

    Stream; TTL: none while the app exists, because every entry is deleted when its request starts or ends; requests.
    """
    return f"{{{app}}}:queue:low"


def leases(app: str) -> str:
    """Requests in progress, scored by the millisecond at which their lease runs out.

    Sorted set; TTL: none, because members leave with the end of their request; requests.
    """
    return f"{{{app}}}:leases"


def delayed(app: str) -> str:
    """Requests that wait for their next attempt, scored by the millisecond at which they are due.

    Sorted set; TTL: none, because members leave by promote, cancel or failure; requests.
    """
    return f"{{{app}}}:delayed"


def deadlines(app: str) -> str:
    """Waiting requests with a start deadline, scored by it.

    Sorted set; TTL: none, because members leave when the request starts or ends; requests.
    """
    return f"{{{app}}}:deadlines"


def turns(app: str) -> str:
    """Counts claims while low priority waits: every eighth looks there first.

    String; TTL: one day after the last such claim; requests.
    """
    return f"{{{app}}}:turns"


def parked(app: str) -> str:
    """Workers that wait for a request with a free slot, scored by the millisecond until which that is believed.

    Sorted set; TTL: none, because members leave with a request or with their worker; requests.
    """
    return f"{{{app}}}:parked"


def woken(app: str) -> str:
    """Set while the scheduler has been woken and has not looked yet, so that a burst wakes it once.

    String; TTL: 1 s; requests.
    """
    return f"{{{app}}}:woken"


def epoch(app: str) -> str:
    """The highest leader epoch that acted on this app: an older leader is refused.

    String; TTL: 7 days after the last use; scheduler's verbs.
    """
    return f"{{{app}}}:epoch"


def idempotency(app: str, key_hash: str) -> str:
    """Idempotency key: the request id it led to, and a fingerprint of that request.

    String; TTL: 24 h; requests.
    """
    return f"{{{app}}}:idempotency:{key_hash}"


def output(app: str, request_id: str) -> str:
    """Pieces of a streamed answer that the gateway has not read yet; ids are ``sequence-0``.

    Stream; TTL: 10 min after the last piece; requests.
    """
    return f"{{{app}}}:output:{request_id}"


def input(app: str, request_id: str) -> str:
    """Pieces from the caller of a connection that its worker has not read yet; ids are ``sequence-0``.

    Stream; TTL: 10 min after the last piece, or after its worker last waited for the app to take some; connections.
    """
    return f"{{{app}}}:input:{request_id}"


def outbox(app: str) -> str:
    """Webhook deliveries to make, scored by the millisecond at which the next try is due.

    Sorted set; TTL: none, because members leave when delivered or given up; outbox.
    """
    return f"{{{app}}}:outbox"


def outbox_offer(app: str, token: str) -> str:
    """What one look into the outbox was given, for whoever has to ask again because the answer was lost.

    String; TTL: as long as its deliveries are held, a minute; outbox.
    """
    return f"{{{app}}}:outbox:offer:{token}"


def outbox_dead(app: str) -> str:
    """Webhook deliveries given up, scored by when.

    Sorted set; TTL: 7 days after the last one; outbox.
    """
    return f"{{{app}}}:outbox:dead"


def letter(app: str, request_id: str) -> str:
    """Dead letter: the input of a queued request that was given up, its last attempt and what was last heard of it.

    Hash; TTL: 7 days after it was given up, 1 h for a caller who wants nothing stored; letters.
    """
    return f"{{{app}}}:letter:{request_id}"


def letters(app: str) -> str:
    """Ids of the app's dead letters, at most 1 000, scored by when the requests were given up.

    Sorted set; TTL: 7 days after the last one; letters.
    """
    return f"{{{app}}}:letters"


# --- an app ------------------------------------------------------------------------------------------------------


def alias(app: str) -> str:
    """What the app's name points at, and the settings that survive deploys.

    Hash; TTL: none, because an app lives until it is deleted; apps.
    """
    return f"{{{app}}}:alias"


def revision(app: str, revision: str) -> str:
    """One immutable version of the app.

    Hash; TTL: none while the app exists, because one may roll back to it; apps.
    """
    return f"{{{app}}}:revision:{revision}"


def crashes(app: str, revision: str) -> str:
    """Requests whose workers of that revision crashed within the last minute, scored by when.

    Sorted set; TTL: 60 s after the last one; requests.
    """
    return f"{{{app}}}:crashes:{revision}"


def blocked(app: str) -> str:
    """Why there is no place for the app's next worker, in words, while that is so.

    String; TTL: 5 s, because its writer repeats it each second; apps.
    """
    return f"{{{app}}}:blocked"


def revisions(app: str) -> str:
    """Names of the app's revisions, scored by creation time.

    Sorted set; TTL: none while the app exists; apps.
    """
    return f"{{{app}}}:revisions"


def worker(app: str, worker_id: str) -> str:
    """One worker of the app.

    Hash; TTL: 1 day after its last sign of life, 1 h after its end; workers, and the verbs that give it requests.
    """
    return f"{{{app}}}:worker:{worker_id}"


def workers(app: str) -> str:
    """Ids of the app's living workers.

    Set; TTL: none while the app exists, because members leave when a worker is removed; workers.
    """
    return f"{{{app}}}:workers"


def command(app: str, command_id: str) -> str:
    """A command that its owner runs beside a worker.

    Hash; TTL: 30 s after its caller was last heard of; commands.
    """
    return f"{{{app}}}:command:{command_id}"


def command_output(app: str, command_id: str) -> str:
    """What the command said and its caller has not read yet.

    Stream; TTL: 60 s after the last piece; commands.
    """
    return f"{{{app}}}:command:{command_id}:output"


def command_input(app: str, command_id: str) -> str:
    """What was said to the command and it has not taken yet.

    Stream; TTL: 60 s after the last piece; commands.
    """
    return f"{{{app}}}:command:{command_id}:input"


def logs(app: str) -> str:
    """The app's log, at most about 10 000 lines.

    Stream; TTL: 30 days after the last line; logs.
    """
    return f"{{{app}}}:logs"


def request_logs(app: str, request_id: str) -> str:
    """Log lines of one request, at most about 1 000.

    Stream; TTL: as its request, 7 days while that is under way; logs.
    """
    return f"{{{app}}}:logs:{request_id}"


# --- the platform ------------------------------------------------------------------------------------------------


def apps() -> str:
    """Names of all apps.

    Set; TTL: none, because it is the list of what exists; apps.
    """
    return "kw:apps"


def apps_retired() -> str:
    """Deleted apps that may still have webhooks to deliver, scored by when they were deleted.

    Sorted set; TTL: 2 days after the last deletion; apps.
    """
    return "kw:apps:retired"


def sessions() -> str:
    """Ephemeral apps, scored by the millisecond at which their session ends unless it is renewed.

    Sorted set; TTL: none, because members leave with their app; apps.
    """
    return "kw:sessions"


def hosts() -> str:
    """Names of the hosts that ever reported.

    Set; TTL: none, because members leave when their record has expired; hosts.
    """
    return "kw:hosts"


def service(service: str, host: str) -> str:
    """A sign of life.

    String; TTL: 20 s after the last one; services.
    """
    return f"kw:service:{{{service}}}:{host}"


def host(host: str) -> str:
    """What a host offers.

    Hash; TTL: 1 day after its last report; hosts.
    """
    return f"kw:host:{{{host}}}"


def host_orders(host: str) -> str:
    """Workers that the host shall run: worker id to app.

    Hash; TTL: 1 day after the last order or report of the host; workers, hosts.
    """
    return f"kw:host:{{{host}}}:orders"


def environment(key: str) -> str:
    """State of one environment.

    Hash; TTL: none, because the folder on disk has none either; environments.
    """
    return f"kw:environment:{{{key}}}"


def environment_log(key: str) -> str:
    """Lines of the environment's last build, at most about 20 000.

    Stream; TTL: 7 days after the last line; environments.
    """
    return f"kw:environment:{{{key}}}:log"


def environment_waiting(key: str) -> str:
    """Revisions that wait for this environment: ``app revision`` to what shall happen then.

    Hash; TTL: 7 days after the last request; environments.
    """
    return f"kw:environment:{{{key}}}:waiting"


def builds() -> str:
    """Builds asked for and not yet taken over by the jobs service.

    Stream; TTL: none, because an accepted build request must be taken over; environments.
    """
    return "kw:builds"


def api_key(key_id: str) -> str:
    """An API key: owner, name, scope, digest of the secret. An app's own has the app as its id, and a salt.

    Hash; TTL: none, because a key is valid until it is revoked, an app's own until the app goes; api keys.
    """
    return f"kw:key:{{{key_id}}}"


def api_keys() -> str:
    """Ids of all API keys.

    Set; TTL: none, because it is the list of what exists; api keys.
    """
    return "kw:keys"


def value(owner: str, database: str, key: str) -> str:
    """A value that the owner's apps share. The database's name is quoted, so that its end cannot be feigned.

    String; TTL: the app's choice, 60 s to 30 days; values.
    """
    return f"kw:value:{{{owner}/{parse.quote(database, safe='')}}}:{key}"


def named_environments(owner: str) -> str:
    """The owner's named environments beside ``main``.

    Hash; TTL: none, because it is the list of what exists; named environments.
    """
    return f"kw:envs:{{{owner}}}"


def secrets(owner: str, env: str) -> str:
    """The owner's secrets in one named environment: name to sealed value.

    Hash; TTL: none, because a secret is there until it is unset; secrets.
    """
    return f"kw:secrets:{{{owner}/{env}}}"


def leader() -> str:
    """Name of the scheduler that leads.

    String; TTL: the leader's own, a few seconds; leadership.
    """
    return "kw:{leader}"


def leader_epoch() -> str:
    """Counts leaders; each gets its own number.

    String; TTL: none, because it must never go back; leadership.
    """
    return "kw:{leader}:epoch"


# --- channels ----------------------------------------------------------------------------------------------------


def channel_wake() -> str:
    """An app's demand, supply or alias changed; payload: the app. Heard by the scheduler."""
    return "kw:wake"


def channel_work(app: str) -> str:
    """There is something to claim. Heard by the app's workers."""
    return f"kw:work:{app}"


def channel_worker(worker_id: str) -> str:
    """``claim ...``, ``cancel <request>``, ``input <request>``, ``stop <how>``, ``command <id>`` for one worker.

    Heard by its supervisor.
    """
    return f"kw:worker:{worker_id}"


def channel_command(command_id: str) -> str:
    """There is output of a command. Heard by the gateway whose caller asked for it."""
    return f"kw:command:{command_id}"


def channel_gateway(gateway_id: str) -> str:
    """``result ...`` or ``output <request>`` for callers that wait at one gateway."""
    return f"kw:gateway:{gateway_id}"


def channel_host(host: str) -> str:
    """The host's orders changed. Heard by its agent."""
    return f"kw:host:{host}"


def channel_environment(key: str) -> str:
    """The environment's state or build log moved on."""
    return f"kw:environment:{key}"


def channel_logs(app: str) -> str:
    """New lines in the app's log."""
    return f"kw:logs:{app}"


def channel_outbox() -> str:
    """A webhook is due; payload: the app."""
    return "kw:outbox"


def channel_builds() -> str:
    """A build was asked for."""
    return "kw:builds"
