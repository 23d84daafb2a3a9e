"""Keeps an app's own key on its platform: the official client knows some of fal's addresses by heart."""

from __future__ import annotations

import os
from types import ModuleType

from fal._runner.after_import import after_import


def stay_here(app: str) -> None:
    """Lead the official Python client here for what its variables do not change: uploads and tokens.

    Only where the key that it finds is the app's own; one that was given may be for fal's cloud.
    """
    url = os.environ.get("KEEPWARM_URL")
    if url and os.environ.get("FAL_KEY", "").partition(":")[0] == app:

        def lead(client: ModuleType) -> None:
            # fal-client 1.0.3 reads both at each call.
            client.REST_URL = f"{url}/rest"  # type: ignore[attr-defined]
            client.CDN_URL = f"{url}/cdn"  # type: ignore[attr-defined]

        after_import("fal_client.client", lead)
