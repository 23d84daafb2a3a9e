"""The nouns of the control API, as the ``fal`` command and ``fal.api`` both use them: apps, runners, keys and so on.

Owns addresses and bodies; answers are the server's JSON. Leaves the connection to ``fal._server``.
"""

from __future__ import annotations

import builtins
from collections.abc import Mapping
from typing import Any, cast, get_args
from urllib.parse import quote

from fal._limits import env_of
from fal._problem import Problem
from fal._server import ControlApi
from fal._spec import KeyScope

Json = dict[str, Any]
MAIN = "main"
#: What fal calls some scopes, and what they come to here.
_SCOPES: dict[str, KeyScope] = {"ADMIN": "FULL", "SERVERLESS": "DEPLOY"}


def key_scope(given: str) -> KeyScope:
    """A key's scope, by our word or fal's, in any case.

    Raises:
        Problem: it is none, or there is nothing here that it could be for.
    """
    word = given.upper()
    if word in get_args(KeyScope):
        return cast("KeyScope", word)
    if word in _SCOPES:
        return _SCOPES[word]
    known = ", ".join(get_args(KeyScope))
    if word in ("BILLING", "COMPUTE", "AGENT"):
        raise Problem(
            f"There are no keys of the scope {word} here.",
            why="nobody is billed, and machines and agents of fal's cloud are not rented.",
            next_step=f"choose one of {known}.",
        )
    raise Problem(f"{given!r} is not a scope of keys.", next_step=f"choose one of {known}.")


class Apps:
    """Every method raises Problem when the server refuses; an app is named as in its URL, with or without owner."""

    def __init__(self, api: ControlApi) -> None:
        self._api = api

    def list(self, *, env: str | None = None, part: str = "", ephemeral: bool = False) -> builtins.list[Json]:
        """Apps by name: of one environment, with ``part`` in their name; ``ephemeral``: those of `fal run` too."""
        return [
            app
            for app in self._api.items("/api/v1/apps")
            if (ephemeral or not app.get("ephemeral"))
            and part in str(app.get("app"))
            and (env is None or env_of(str(app.get("app"))) == env)
        ]

    def get(self, name: str) -> Json:
        """One app: what serves, its scaling settings, why its requests wait."""
        found: Json = self._api.json("GET", self._api.app_path(name))
        return found

    def runners(self, name: str) -> builtins.list[Json]:
        """Its runners."""
        return self._api.items(self._api.app_path(name, "/workers"))

    def running(self, name: str) -> builtins.list[Json]:
        """Requests that its runners have now."""
        return self._api.items(self._api.app_path(name, "/running"))

    def scale(self, name: str, changes: Mapping[str, Any]) -> Json:
        """Change the settings that ``changes`` names.

        Raises:
            Problem: also when it names none.
        """
        if not changes:
            raise Problem(
                "Nothing to change.", next_step="name a setting, as in `fal apps scale my-app --keep-alive 300`."
            )
        answer: Json = self._api.json("PATCH", self._api.app_path(name, "/scaling"), json=dict(changes))
        return answer

    def rollout(self, name: str, *, strategy: str = "rolling", force: bool = False) -> Json:
        """Replace all runners; the answer counts them."""
        body = {"strategy": strategy, "force": force}
        answer: Json = self._api.json("POST", self._api.app_path(name, "/rollout"), json=body)
        return answer

    def gpus(self, name: str) -> dict[str, int]:
        """GPUs that its runners hold, by machine type."""
        self._api.request("GET", self._api.app_path(name))  # a name that is none is told so
        return _held(Runners(self._api).metrics()["apps"].get(self._api.app_id(name), {}).get("gpu_count_by_type", {}))


class Runners:
    """Runners by their id, whichever app they are of."""

    def __init__(self, api: ControlApi) -> None:
        self._api = api

    def list(self) -> builtins.list[Json]:
        """Those of all apps."""
        apps = Apps(self._api)
        return [each for app in apps.list(ephemeral=True) for each in apps.runners(str(app["app"]))]

    def app_of(self, runner: str) -> str:
        """The app of a runner that is up.

        Raises:
            Problem: there is none of that id.
        """
        for each in self.list():
            if each.get("worker_id") == runner:
                return str(each["app"])
        raise Problem(
            f"No app has a runner {runner!r} now.",
            next_step="for one that is gone, name its app: `fal runners logs RUNNER --app APP`.",
        )

    def path(self, runner: str, suffix: str = "", app: str | None = None) -> str:
        """Path of a runner's resource; ``app`` saves looking for it."""
        return self._api.app_path(app or self.app_of(runner), f"/workers/{quote(runner, safe='')}{suffix}")

    def stop(self, runner: str, how: str = "drain", *, app: str | None = None) -> Json:
        """``drain``: finish and leave; ``replace``: once another one is ready; ``kill``: now."""
        answer: Json = self._api.json("POST", self.path(runner, "/stop", app), json={"how": how})
        return answer

    def gpus(self) -> dict[str, int]:
        """GPUs that runners of all apps hold, by machine type."""
        return _held(self.metrics()["summary"]["total_gpu_by_type"])

    def metrics(self) -> Json:
        """The same, in all and app by app, as fal's own command is told it."""
        answer: Json = self._api.json("GET", "/rest/applications/metrics")
        return answer


class Keys:
    """API keys."""

    def __init__(self, api: ControlApi) -> None:
        self._api = api

    def list(self) -> builtins.list[Json]:
        """Without their secrets."""
        return self._api.items("/api/v1/keys")

    def create(self, name: str = "", scope: KeyScope = "FULL") -> Json:
        """A new key; ``key`` of the answer is what ``FAL_KEY`` takes, shown this once."""
        answer: Json = self._api.json("POST", "/api/v1/keys", json={"name": name, "scope": scope})
        return answer | {"key": answer.get("key") or f"{answer.get('key_id')}:{answer.get('secret')}"}

    def revoke(self, key: str) -> str:
        """Take a key back; returns its id."""
        # A whole key pasted here must not end up in a URL, and thereby in logs.
        key_id = key.partition(":")[0]
        self._api.request("DELETE", f"/api/v1/keys/{quote(key_id, safe='')}")
        return key_id


class Secrets:
    """Secrets of one environment; nothing ever tells a value."""

    def __init__(self, api: ControlApi) -> None:
        self._api = api

    def list(self, env: str = MAIN) -> builtins.list[Json]:
        """Names, and when each was set."""
        return self._api.items("/api/v1/secrets", params={"env": env})

    def set(self, values: Mapping[str, str], *, exposed: bool = True, env: str = MAIN) -> None:
        """All of them or none; ``exposed``: apps that list no secrets get them."""
        body = {"values": dict(values), "exposed": exposed}
        self._api.json("POST", "/api/v1/secrets", params={"env": env}, json=body)

    def unset(self, name: str, env: str = MAIN) -> None:
        """Forget one."""
        self._api.request("DELETE", f"/api/v1/secrets/{quote(name, safe='')}", params={"env": env})


class Environments:
    """Named environments."""

    def __init__(self, api: ControlApi) -> None:
        self._api = api

    def list(self) -> builtins.list[Json]:
        """``main`` first."""
        return self._api.items("/api/v1/environments")

    def create(self, name: str, description: str = "") -> Json:
        """A new, empty one."""
        answer: Json = self._api.json("POST", "/api/v1/environments", json={"name": name, "description": description})
        return answer

    def delete(self, name: str) -> None:
        """With its secrets; its apps must be gone."""
        self._api.request("DELETE", f"/api/v1/environments/{quote(name, safe='')}")


def _held(counts: Mapping[str, int]) -> dict[str, int]:
    return {name: count for name, count in sorted(counts.items()) if count}
