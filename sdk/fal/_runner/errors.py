"""What can go wrong between a revision and its bundle, and with a web server that a function starts."""

from __future__ import annotations


class LoadError(Exception):
    """The bundle does not hold what the revision names."""


class ServerEnded(Exception):
    """The function ended before its web server took connections; the cause is what it raised."""
