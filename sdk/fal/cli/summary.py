"""What is shown once an app answers: its addresses, who may call it, and one call to copy.

The same for ``fal run`` and ``fal deploy``.
"""

from __future__ import annotations

import re

from fal._loading import LoadedApp
from fal._settings import app_name_of
from fal.cli.building import Built
from fal.cli.console import Screen
from fal.cli.example_call import curl_command, example_body

_AUTH_MEANING = {
    "public": "no key needed: whoever knows the URL can call it",
    "private": "only the owner's keys can call it",
    "shared": "anybody with a key of this server can call it",
}


def note_lost_digits(screen: Screen, loaded: LoadedApp) -> None:
    """Say the name that was made of a class's name by leaving its digits out: ``S11`` and ``S12`` are both ``s``."""
    class_name, name = loaded.cls.__name__, loaded.spec.name
    if name == app_name_of(class_name) and re.search(r"\d", class_name) and not re.search(r"\d", name):
        screen.note(f"the digits of {class_name} are left out of the app's name, {name!r}; --app-name gives another.")


def show_addresses(screen: Screen, built: Built, loaded: LoadedApp) -> None:
    """Who may call the app, and where."""
    screen.parts(("▸ Auth: ", "bold"), (built.auth, "bold"), (f" ({_AUTH_MEANING.get(built.auth, '?')})", "dim"))
    screen.parts(("▸ API Endpoints", "bold"), (" (POST)", "dim"))
    for endpoint in loaded.spec.endpoints:
        sync, queue = built.endpoint_urls(endpoint.path)
        if endpoint.is_websocket:
            screen.parts(("  Socket ", "dim"), (f"ws{sync.removeprefix('http')}", "cyan"))
        else:
            screen.parts(("  Sync   ", "dim"), (sync, "cyan"))
            screen.parts(("  Async  ", "dim"), (queue, "cyan"))


def show_curl(screen: Screen, built: Built, loaded: LoadedApp) -> None:
    """A call of the first endpoint that takes a POST."""
    for endpoint in loaded.spec.endpoints:
        if not endpoint.is_websocket:
            body = example_body(loaded.cls, endpoint.name)
            url = built.endpoint_urls(endpoint.path)[0]
            screen.exact(f"  {curl_command(url, body, with_key=built.auth != 'public')}")
            return
