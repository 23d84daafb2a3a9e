"""The patterns of one ``.gitignore`` file, as git reads them. Standard library only."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class _Rule:
    pattern: re.Pattern[str]
    keeps: bool
    folders_only: bool


@dataclass(frozen=True)
class Ignore:
    """Which paths below the file's folder are left out; the last rule that fits a path decides."""

    rules: tuple[_Rule, ...] = ()

    @classmethod
    def of(cls, file: Path) -> Ignore:
        """The rules of a file; none when there is no such file."""
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            return cls()
        return cls(tuple(rule for line in lines if (rule := _rule(line)) is not None))

    def has(self, path: str, is_folder: bool) -> bool:
        """Whether a posix path is left out. What a left out folder holds is not looked at by the caller."""
        fitting = [r for r in self.rules if (is_folder or not r.folders_only) and r.pattern.fullmatch(path)]
        return bool(fitting) and not fitting[-1].keeps


def _rule(line: str) -> _Rule | None:
    text = line.rstrip()
    if not text or text.startswith("#"):
        return None
    keeps = text.startswith("!")
    text = text.removeprefix("!").removeprefix("\\")
    folders_only = text.endswith("/")
    text = text.rstrip("/")
    # A slash before the end ties a pattern to the file's folder; without one it fits at any depth.
    anywhere = "/" not in text
    text = text.removeprefix("/")
    return _Rule(re.compile(("(?:.*/)?" if anywhere else "") + _regex(text)), keeps, folders_only) if text else None


def _regex(glob: str) -> str:
    parts, at = [], 0
    while at < len(glob):
        if glob.startswith("**/", at):
            parts.append("(?:.*/)?")
            at += 3
        elif glob.startswith("**", at):
            parts.append(".*")
            at += 2
        elif glob[at] == "[" and (end := glob.find("]", at + 2)) > 0:
            inside = glob[at + 1 : end].replace("\\", "\\\\")
            parts.append(f"[{'^' + inside[1:] if inside[0] in '!^' else inside}]")
            at = end + 1
        else:
            parts.append({"*": "[^/]*", "?": "[^/]"}.get(glob[at], re.escape(glob[at])))
            at += 1
    return "".join(parts)
