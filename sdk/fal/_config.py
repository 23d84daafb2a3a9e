"""Where the fal command finds its settings: environment variables and the profiles of ``~/.fal/config.toml``.

Owns reading and writing that file. Leaves talking to a server to ``fal._server``.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fal._problem import Problem

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

#: Section of the file that holds the command's own memory (the chosen profile) instead of a profile.
INTERNAL = "__internal__"
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


@dataclass
class Config:
    """The profiles of one file. ``environment_profile`` is ``FAL_PROFILE`` and beats the remembered choice."""

    path: Path
    sections: dict[str, dict[str, Any]] = field(default_factory=dict)
    environment_profile: str | None = None

    @classmethod
    def load(cls, environ: Mapping[str, str] | None = None) -> Config:
        """Read ``FAL_CONFIG_PATH``, else ``~/.fal/config.toml``; a missing file is an empty one.

        Raises:
            Problem: the file cannot be read or is not TOML.
        """
        environ = os.environ if environ is None else environ
        path = Path(environ.get("FAL_CONFIG_PATH") or "~/.fal/config.toml").expanduser()
        try:
            content = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            content = {}
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise Problem(
                f"The settings file {path} cannot be read.",
                why=str(error),
                next_step="correct the file, or point FAL_CONFIG_PATH at another one.",
            ) from error
        sections = {name: dict(value) for name, value in content.items() if isinstance(value, dict)}
        return cls(path, sections, environ.get("FAL_PROFILE") or None)

    @property
    def profile(self) -> str | None:
        """The profile in use: ``FAL_PROFILE``, else the chosen one, else None."""
        chosen = self.environment_profile or self.sections.get(INTERNAL, {}).get("profile")
        return str(chosen) if chosen else None

    @property
    def profiles(self) -> list[str]:
        """Names of all profiles, in the file's order."""
        return [name for name in self.sections if name != INTERNAL]

    def get(self, key: str) -> str | None:
        """A value of the profile in use.

        Raises:
            Problem: ``FAL_PROFILE`` names a profile that the file does not have.
        """
        if self.profile is None:
            return None
        if self.environment_profile and self.profile not in self.sections:
            known = ", ".join(self.profiles) or "none"
            raise Problem(
                f"FAL_PROFILE names the profile {self.profile!r}, which {self.path} does not have.",
                why=f"profiles there: {known}.",
                next_step=f"create it with `fal profile set {self.profile}`, or unset FAL_PROFILE.",
            )
        value = self.sections.get(self.profile, {}).get(key)
        return str(value) if value else None

    def choose(self, profile: str | None) -> None:
        """Remember ``profile`` as the one to use (None forgets the choice); creates it when it is new."""
        internal = self.sections.setdefault(INTERNAL, {})
        if profile is None:
            internal.pop("profile", None)
        else:
            self.sections.setdefault(profile, {})
            internal["profile"] = profile

    def set(self, key: str, value: str) -> str:
        """Set a value of the profile in use; without one, a profile called ``default`` is made and chosen."""
        if self.profile is None:
            self.choose("default")
        profile = self.profile or "default"
        self.sections.setdefault(profile, {})[key] = value
        return profile

    def save(self) -> None:
        """Write the file, readable by this user alone because it holds keys."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=self.path.parent, prefix=".config-")
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(_to_toml(self.sections))
        Path(temporary).replace(self.path)


def _to_toml(sections: Mapping[str, Mapping[str, Any]]) -> str:
    blocks = []
    for name, values in sections.items():
        lines = [f"[{_toml_key(name)}]"]
        lines += [f"{_toml_key(key)} = {_toml_value(value)}" for key, value in values.items()]
        blocks.append("\n".join(lines) + "\n")
    return "\n".join(blocks)


def _toml_key(name: str) -> str:
    return name if _BARE_KEY.fullmatch(name) else _toml_value(name)


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    escaped = re.sub(r'[\\"]', lambda found: "\\" + found.group(), str(value))
    return '"' + re.sub(r"[\x00-\x1f\x7f]", lambda found: f"\\u{ord(found.group()):04x}", escaped) + '"'


@dataclass(frozen=True)
class Target:
    """A server and the key for it. ``source`` says where they were found; ``local`` is a platform of this machine."""

    url: str
    key: str | None
    source: str
    local: bool = False

    @property
    def on_loopback(self) -> bool:
        return _is_this_machine(urlsplit(self.url).hostname or "")


def credentials(environ: Mapping[str, str] | None = None) -> str | None:
    """``id:secret`` from ``FAL_KEY``, else from ``FAL_KEY_ID`` and ``FAL_KEY_SECRET``, else None."""
    environ = os.environ if environ is None else environ
    if key := environ.get("FAL_KEY", "").strip():
        return key
    key_id, secret = environ.get("FAL_KEY_ID", "").strip(), environ.get("FAL_KEY_SECRET", "").strip()
    return f"{key_id}:{secret}" if key_id and secret else None


def server_url(host: str) -> str:
    """A server's address as a URL without trailing slash: ``localhost:8000`` and full URLs are both understood.

    Raises:
        Problem: it has another scheme than http(s), or no host.
    """
    text = host.strip()
    if "://" not in text:
        name = urlsplit(f"//{text}").hostname or ""
        text = f"{'http' if _is_this_machine(name) else 'https'}://{text}"
    try:
        parts = urlsplit(text)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number
        usable = False
    if not usable:
        raise Problem(
            f"{host!r} is not the address of a server.",
            next_step="give it as http://HOST:PORT or https://HOST, for example http://localhost:8000.",
        )
    return text.rstrip("/")


def _is_this_machine(name: str) -> bool:
    return name in ("localhost", "::1", "0.0.0.0") or name.startswith("127.") or name.endswith(".localhost")
