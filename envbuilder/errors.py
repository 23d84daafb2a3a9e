"""Why an environment could not be had. A class docstring is the default next step.

BuildError
├── BadRequirement     a line that is not allowed or cannot be read; nothing was run
├── NoInterpreter      this machine has no such Python
├── Unsatisfiable      no set of packages meets the requirements
├── InstallFailed      an index or a download failed
│   └── SourceBuildFailed  a package did not build from its source
├── SmokeImportFailed  installed, but a module that the app imports does not import
├── LimitReached       wall-clock or silence limit; the build's processes were ended
├── DiskFull           too little room on the disk
└── EnvironmentGone    evicted between find and hold; build it again
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def hide(text: str, secrets: Iterable[str]) -> str:
    """``text`` with stars in place of each of those values."""
    for secret in secrets:
        text = text.replace(secret, "****")
    return text


class BuildError(Exception):
    """An environment could not be built.

    Args:
        message: the first line says the cause and the next step; further lines are the tool's own explanation.
        log_tail: last lines of the build's output, oldest first.
    """

    #: Whether another choice of versions (dated or undated) might succeed where this one failed.
    other_versions_may_help = False

    def __init__(self, message: str, log_tail: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.log_tail = tuple(log_tail)

    def with_tail(self, log_tail: Sequence[str]) -> BuildError:
        """The same error, carrying the lines that the build has printed by now."""
        return type(self)(self.message, log_tail)

    def without(self, secrets: Iterable[str]) -> BuildError:
        """The same error with stars in place of those values."""
        hidden = [secret for secret in secrets if secret]
        return type(self)(hide(self.message, hidden), [hide(line, hidden) for line in self.log_tail])


class BadRequirement(BuildError, ValueError):
    """A requirement, option, constraint or date of the app cannot be used as it is written."""


class NoInterpreter(BuildError):
    """The Python version that the app asks for is not on this machine."""


class Unsatisfiable(BuildError):
    """No set of packages meets the requirements."""

    other_versions_may_help = True


class InstallFailed(BuildError):
    """The install failed for another reason than the requirements themselves."""


class SourceBuildFailed(InstallFailed):
    """A package without a fitting wheel did not build from its source."""

    other_versions_may_help = True


class SmokeImportFailed(BuildError):
    """The environment is complete, but a module that the app imports fails to import."""

    other_versions_may_help = True


class LimitReached(BuildError):
    """The build took too long or fell silent."""


class DiskFull(BuildError):
    """The disk that holds the environments has too little room."""


#: When the disk itself says so; while a floor is left, the message has numbers.
DISK_FULL = "The disk is full. Next: free some room or evict unused environments, then build again."


class EnvironmentGone(BuildError):
    """The environment was removed; build it again."""
