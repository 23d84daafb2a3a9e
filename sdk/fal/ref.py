"""The app that this process serves, for code that has no ``self`` at hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fal.app import App

_current_app: App | None = None


def get_current_app() -> App | None:
    """The app that this runner serves, from before its ``setup()`` on; None anywhere else."""
    return _current_app


def set_current_app(app: App | None) -> None:
    """Say which app this process serves."""
    global _current_app
    _current_app = app
