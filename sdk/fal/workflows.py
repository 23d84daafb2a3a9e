"""Chains of models that fal's cloud runs: not on this platform; using a name says what to do."""

from __future__ import annotations

from fal._absent import absent

__getattr__ = absent(
    "fal.workflows",
    "call one app after the other with fal.apps.run(...), from your program or from an app (docs/migrating.md)",
)
