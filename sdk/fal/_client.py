"""The ``fal`` command as a Python object: every method does what the command of its name does, by the same code."""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from fal._client_records import (
    AppInfo,
    Deployment,
    EnvironmentInfo,
    KeyInfo,
    RunnerInfo,
    SecretInfo,
    moment,
)
from fal._limits import name_in_env

if TYPE_CHECKING:
    from fal._server import ControlApi

_MAIN = "main"


@dataclass
class SyncServerlessClient:
    """A platform from Python: ``.apps``, ``.runners``, ``.keys``, ``.secrets``, ``.environments``, ``.deploy()``.

    Args:
        host: its address; None: ``KEEPWARM_URL``, the profile's, or the platform running on this machine.
        api_key: ``id:secret``; None: ``FAL_KEY``, or the one that belongs to the address.
        profile: a profile of ``~/.fal/config.toml``, in place of the chosen one.
        team: an owner has no teams here, so only the key's own owner will do.

    Raises (every method):
        Problem: the platform refused or does not answer; its text says why and what to do.
    """

    host: str | None = None
    api_key: str | None = None
    profile: str | None = None
    team: str | None = None

    @cached_property
    def _api(self) -> ControlApi:
        from fal._platform import server_for
        from fal._problem import Problem
        from fal._server import ControlApi

        api = ControlApi(server_for(self.host, self.api_key, self.profile))
        if self.team is not None and self.team != (owner := api.owner()):
            raise Problem(
                f"There is no team {self.team!r} for this key.",
                why=f"the key belongs to {owner!r}, and a key acts for its owner alone.",
                next_step=f"use a key of {self.team!r} (api_key=, or a profile), or leave team out.",
            )
        return api

    @property
    def apps(self) -> AppsNamespace:
        """What ``fal apps`` does."""
        return AppsNamespace(self)

    @property
    def runners(self) -> RunnersNamespace:
        """What ``fal runners`` does."""
        return RunnersNamespace(self)

    @property
    def keys(self) -> KeysNamespace:
        """What ``fal keys`` does."""
        return KeysNamespace(self)

    @property
    def secrets(self) -> SecretsNamespace:
        """What ``fal secrets`` does."""
        return SecretsNamespace(self)

    @property
    def environments(self) -> EnvironmentsNamespace:
        """What ``fal environments`` does."""
        return EnvironmentsNamespace(self)

    def deploy(
        self,
        app_ref: str | None = None,
        *,
        app_name: str | None = None,
        auth: Literal["private", "shared", "public"] | None = None,
        strategy: Literal["rolling", "recreate"] | None = None,
        reset_scale: bool = False,
        force_env_build: bool = False,
        message: str | None = None,
        environment_name: str | None = None,
    ) -> Deployment:
        """Deploy an app and wait until it serves; progress is printed, as by ``fal deploy``.

        Args:
            app_ref: ``file.py``, ``file.py::Class``, or a name of ``[tool.fal.apps]``; None: the only one there.
            strategy: None: as ``pyproject.toml`` says, else rolling.
            force_env_build: build the environment anew.
            environment_name: a named environment.
        """
        from fal._loading import load
        from fal.cli.building import Delivery
        from fal.cli.console import Screen

        loaded = load(app_ref, app_name=app_name, auth=auth, env=environment_name or _MAIN)
        delivery = Delivery(self._api, Screen(to_stderr=True))
        begun = delivery.begin(
            loaded,
            ephemeral=False,
            message=message,
            reset_scale=reset_scale or loaded.reset_scale,
            no_cache=force_env_build,
            strategy=strategy or loaded.strategy,
        )
        built = delivery.finish(loaded, begun)
        return Deployment(built.app, built.app.partition("/")[2], built.revision, built.auth, dict(built.urls))


class _Namespace:
    def __init__(self, client: SyncServerlessClient) -> None:
        self._client = client

    @property
    def _api(self) -> ControlApi:
        return self._client._api


class AppsNamespace(_Namespace):
    """Apps; those of a named environment with ``environment_name``."""

    @property
    def _apps(self) -> Any:
        from fal._nouns import Apps

        return Apps(self._api)

    def list(self, *, filter: str | None = None, environment_name: str | None = None) -> builtins.list[AppInfo]:
        """All apps, or those with ``filter`` in their name."""
        return [AppInfo.of(item) for item in self._apps.list(env=environment_name, part=filter or "")]

    def runners(
        self,
        app_name: str,
        *,
        since: datetime | None = None,
        state: Sequence[str] | None = None,
        environment_name: str | None = None,
    ) -> builtins.list[RunnerInfo]:
        """Its runners: those that started after ``since`` (local time unless it says), those in one of the states."""
        items = self._apps.runners(_named(app_name, environment_name))
        return _sifted([RunnerInfo.of(item) for item in items], since, state)

    def scale(self, app_name: str, *, environment_name: str | None = None, **settings: Any) -> AppInfo:
        """Change scaling settings at once, as ``fal apps scale`` does; None, and ``regions``, change nothing."""
        settings.pop("regions", None)  # there are none
        name = _named(app_name, environment_name)
        self._apps.scale(name, {key: value for key, value in settings.items() if value is not None})
        return AppInfo.of(self._apps.get(name))

    def rollout(self, app_name: str, *, force: bool = False, environment_name: str | None = None) -> None:
        """Replace its runners, new ones first; ``force`` kills them."""
        self._apps.rollout(_named(app_name, environment_name), force=force)

    def gpus(self, app_name: str) -> dict[str, Any]:
        """GPUs that its runners hold: ``{"gpus": {type: count}, "total": count}``."""
        return _counted(self._apps.gpus(app_name))


class RunnersNamespace(_Namespace):
    """Runners of all apps."""

    @property
    def _runners(self) -> Any:
        from fal._nouns import Runners

        return Runners(self._api)

    def list(self, *, since: datetime | None = None) -> builtins.list[RunnerInfo]:
        """All, or those that started after ``since`` (local time unless it says)."""
        return _sifted([RunnerInfo.of(item) for item in self._runners.list()], since, None)

    def stop(self, runner_id: str, replace_first: bool = False) -> None:
        """Let it finish what it has and leave; ``replace_first``: once another one is ready."""
        self._runners.stop(runner_id, "replace" if replace_first else "drain")

    def kill(self, runner_id: str) -> None:
        """End it now."""
        self._runners.stop(runner_id, "kill")

    def gpus(self) -> dict[str, Any]:
        """GPUs that all runners hold: ``{"gpus": {type: count}, "total": count}``."""
        return _counted(self._runners.gpus())


class KeysNamespace(_Namespace):
    """API keys."""

    @property
    def _keys(self) -> Any:
        from fal._nouns import Keys

        return Keys(self._api)

    def create(
        self, *, scope: str | None = None, preset: str | None = None, description: str | None = None
    ) -> tuple[str, str]:
        """A new key: its id and its secret, which is told this once.

        Args:
            scope: FULL (unless said), API, DEPLOY or READONLY; fal's ``admin`` is FULL. ``preset`` says the same.
        """
        from fal._nouns import key_scope

        made = self._keys.create(description or "", key_scope(str(preset or scope or "FULL")))
        return str(made["key_id"]), str(made["secret"])

    def list(self) -> builtins.list[KeyInfo]:
        """All keys, revoked ones too."""
        return [KeyInfo.of(item) for item in self._keys.list()]

    def revoke(self, key_id: str) -> None:
        """Take one back."""
        self._keys.revoke(key_id)


class SecretsNamespace(_Namespace):
    """Secrets; no method tells a value."""

    @property
    def _secrets(self) -> Any:
        from fal._nouns import Secrets

        return Secrets(self._api)

    def set(
        self, name: str, value: str, environment_name: str | None = None, *, exposed_by_default: bool = True
    ) -> None:
        """Set one; ``exposed_by_default=False``: only apps that list it get it."""
        self._secrets.set({name: value}, exposed=exposed_by_default, env=environment_name or _MAIN)

    def list(self, environment_name: str | None = None) -> builtins.list[SecretInfo]:
        """Their names."""
        env = environment_name or _MAIN
        return [
            SecretInfo(item["name"], moment(item["updated_at"]), env, bool(item["exposed"]))
            for item in self._secrets.list(env)
        ]

    def unset(self, name: str, environment_name: str | None = None) -> None:
        """Forget one."""
        self._secrets.unset(name, environment_name or _MAIN)


class EnvironmentsNamespace(_Namespace):
    """Named environments."""

    @property
    def _environments(self) -> Any:
        from fal._nouns import Environments

        return Environments(self._api)

    def create(self, name: str, description: str | None = None) -> EnvironmentInfo:
        """A new, empty one."""
        made = self._environments.create(name, description or "")
        return EnvironmentInfo(made["name"], made["description"])

    def list(self) -> builtins.list[EnvironmentInfo]:
        """``main`` first."""
        return [
            EnvironmentInfo(e["name"], e["description"], moment(e["created_at"]) if e.get("created_at") else None)
            for e in self._environments.list()
        ]

    def delete(self, name: str) -> None:
        """With its secrets; its apps must be gone."""
        self._environments.delete(name)


def _named(app: str, environment: str | None) -> str:
    return name_in_env(app, environment or _MAIN)


def _counted(held: dict[str, int]) -> dict[str, Any]:
    return {"gpus": held, "total": sum(held.values())}


def _sifted(
    runners: builtins.list[RunnerInfo], since: datetime | None, states: Sequence[str] | None
) -> builtins.list[RunnerInfo]:
    wanted = None if states is None else {state.upper() for state in states}
    after = None if since is None else since.astimezone()
    return [
        runner
        for runner in runners
        if (after is None or runner.created_at >= after) and (wanted is None or runner.state.upper() in wanted)
    ]
