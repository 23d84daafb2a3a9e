"""An app whose process dies of every request, and another one that has nothing to do with it."""

from __future__ import annotations

import os
from typing import Any

import fal


class Crashing(fal.App):
    keep_alive = 30
    max_concurrency = 2

    @fal.endpoint("/")
    def run(self) -> dict[str, Any]:
        os.abort()


class Neighbour(fal.App):
    keep_alive = 30

    @fal.endpoint("/")
    def run(self) -> dict[str, Any]:
        return {"pid": os.getpid()}
