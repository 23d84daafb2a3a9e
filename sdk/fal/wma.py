"""WebRTC apps (experimental in fal): not on this platform; using a name says what to do."""

from __future__ import annotations

from fal._absent import absent

__getattr__ = absent(
    "fal.wma",
    "serve frames over a websocket with @fal.realtime(...) (docs/apps.md, Realtime)",
)
