"""Requirements into ready virtual environments, built once per key with uv. Knows nothing of requests or apps.

``build`` and ``find`` give an ``Environment``; whoever runs something in it wraps that in ``hold``; ``evict`` frees
disk. ``envbuilder.key`` alone is cheap and pure.
"""

from envbuilder.builder import build
from envbuilder.errors import BadRequirement, BuildError, EnvironmentGone
from envbuilder.eviction import Evicted, evict
from envbuilder.requirements import placeholders
from envbuilder.settings import BuildSettings
from envbuilder.shelf import Environment, find, hold

__all__ = [
    "BadRequirement",
    "BuildError",
    "BuildSettings",
    "Environment",
    "EnvironmentGone",
    "Evicted",
    "build",
    "evict",
    "find",
    "hold",
    "placeholders",
]
