"""What can go wrong between a revision and its bundle."""

from __future__ import annotations


class LoadError(Exception):
    """The bundle does not hold what the revision names."""
