"""Builders over folders of their own that share one uv cache, so that the index is asked once a session."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from envbuilder import BuildSettings
from tests.envbuilder.builds import Built
from tests.support.loop import run

MakeSettings = Callable[..., BuildSettings]


@pytest.fixture
def make_settings(tmp_path: Path, shared_builds: Path) -> MakeSettings:
    """Settings of a builder with no environments yet; keywords are further variables."""

    def make(**variables: str) -> BuildSettings:
        environ = {
            **os.environ,
            "KEEPWARM_DATA": str(tmp_path / "data"),
            "KEEPWARM_UV_CACHE_DIR": str(shared_builds / "uv-cache"),
            **variables,
        }
        return BuildSettings.from_env(environ)

    return make


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory, shared_builds: Path) -> Built:
    """One real environment with one small package, for every test that only looks at it."""
    data = tmp_path_factory.mktemp("small")
    settings = BuildSettings.from_env(
        {**os.environ, "KEEPWARM_DATA": str(data), "KEEPWARM_UV_CACHE_DIR": str(shared_builds / "uv-cache")}
    )
    return run(Built.make(settings, "six==1.17.0", smoke_imports=("six",)))
