"""Requirement lines into plain data: what is asked for, by name, in order, and which index options come with it.

Owns which lines are allowed and their one normal form. Leaves versions to uv and the choice of sets to ``plan``.
Pure: nothing here reads a file or the network.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from typing import TYPE_CHECKING

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from envbuilder.errors import BadRequirement

if TYPE_CHECKING:
    from fal._spec import EnvironmentSpec

#: Injected into every runner through PYTHONPATH, so that an environment never depends on a release of the platform.
INJECTED = "fal"
#: How far URLs may reach. ``file:`` is not among them: it would read the builder's disk.
_URL_SCHEMES = ("https://", "http://", "git+https://", "git+http://", "git+ssh://")
#: A project or wheel of the user's machine, sent along: ``upload:<sha256>/<filename>``.
_UPLOAD = re.compile(r"upload:(?P<sha256>[0-9a-f]{64})/(?P<name>[A-Za-z0-9][A-Za-z0-9._+!-]{0,199})")
_UPLOADED_KINDS = (".whl", ".tar.gz", ".zip")
_VALUE_OPTIONS = {
    "--extra-index-url": "extra_index_urls",
    "--find-links": "find_links",
    "-f": "find_links",
    "--index-url": "index_url",
    "-i": "index_url",
}
_ALLOWED = "--index-url URL, --extra-index-url URL, --find-links URL and --pre"


#: A secret of the owner's in an address, such as the token of a private index.
_PLACEHOLDER = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


@dataclass(frozen=True)
class Wanted:
    """One requirement. ``name`` and ``specifier`` are None for a bare URL; ``text`` is the normal form for uv."""

    text: str
    name: str | None = None
    specifier: SpecifierSet | None = None

    @property
    def exact_version(self) -> str | None:
        """The version of an exact pin (``==`` without a star, or ``===``), else None."""
        clauses = list(self.specifier or ())
        if len(clauses) == 1 and clauses[0].operator in ("==", "===") and not clauses[0].version.endswith(".*"):
            return clauses[0].version
        return None

    @property
    def uploaded(self) -> tuple[str, str] | None:
        """SHA-256 and file name of what was sent along for it; None for everything else."""
        found = _UPLOAD.search(self.text)
        return (found["sha256"], found["name"]) if found else None

    @property
    def shown(self) -> str:
        """For people to read."""
        return _UPLOAD.sub("your own files", self.text)

    @property
    def floats(self) -> bool:
        """Whether the index's next upload may change what this resolves to."""
        return self.name is not None and self.specifier is not None and self.exact_version is None


@dataclass(frozen=True)
class Layer:
    """One install step: requirements in the given order, and the options that hold for this step only."""

    wanted: tuple[Wanted, ...] = ()
    index_url: str | None = None
    extra_index_urls: tuple[str, ...] = ()
    find_links: tuple[str, ...] = ()
    pre: bool = False

    @property
    def names_its_own_index(self) -> bool:
        return bool(self.index_url or self.extra_index_urls or self.find_links)


@dataclass(frozen=True)
class Asked:
    """All that a user asks for. ``notes`` are lines to show at build (dropped items)."""

    layers: tuple[Layer, ...]
    constraints: tuple[Wanted, ...]
    exclude_newer: str | None
    notes: tuple[str, ...] = ()

    @property
    def wanted(self) -> tuple[Wanted, ...]:
        return tuple(w for layer in self.layers for w in layer.wanted)

    @property
    def placeholders(self) -> tuple[str, ...]:
        """Names of the secrets that addresses hold, as in ``https://${TOKEN}@host/simple``."""
        names = (name for layer in self.layers for text in _addresses(layer) for name in _PLACEHOLDER.findall(text))
        return tuple(dict.fromkeys(names))

    def filled(self, secrets: Mapping[str, str]) -> Asked:
        """The same with values in place of ``placeholders``; they count for no key."""

        def fill(text: str) -> str:
            return _PLACEHOLDER.sub(lambda match: secrets[match[1]], text)

        layers = (
            replace(
                layer,
                wanted=tuple(replace(wanted, text=fill(wanted.text)) for wanted in layer.wanted),
                index_url=fill(layer.index_url) if layer.index_url else None,
                extra_index_urls=tuple(map(fill, layer.extra_index_urls)),
                find_links=tuple(map(fill, layer.find_links)),
            )
            for layer in self.layers
        )
        return replace(self, layers=tuple(layers))


def placeholders(spec: EnvironmentSpec) -> tuple[str, ...]:
    """Names of the secrets that the addresses of its requirements hold.

    Raises:
        BadRequirement: as ``parse``.
    """
    return parse(spec.requirements, spec.constraints, spec.exclude_newer).placeholders


def _addresses(layer: Layer) -> Iterator[str]:
    yield from (wanted.text for wanted in layer.wanted)
    yield from (layer.index_url or "", *layer.extra_index_urls, *layer.find_links)


def parse(
    requirements: Sequence[Sequence[str]], constraints: Sequence[str] = (), exclude_newer: str | None = None
) -> Asked:
    """Read what a user wrote. Empty layers vanish; comments are cut off.

    Raises:
        BadRequirement: naming the line, the cause and what to write instead.
    """
    layers: list[Layer] = []
    notes: list[str] = []
    for number, lines in enumerate(requirements, start=1):
        layer = _parse_layer(lines, number, notes)
        if layer != Layer():
            layers.append(layer)
    bounds = [_constraint(line) for line in _without_comments(constraints)]
    bounds.sort(key=lambda wanted: wanted.text)
    return Asked(tuple(layers), tuple(bounds), _exclude_newer(exclude_newer), tuple(notes))


def _parse_layer(lines: Sequence[str], number: int, notes: list[str]) -> Layer:
    wanted: list[Wanted] = []
    options: dict[str, list[str]] = {"extra_index_urls": [], "find_links": [], "index_url": []}
    pre = False
    items = list(_without_comments(lines))
    while items:
        item = items.pop(0)
        if not item.startswith("-"):
            one = parse_line(item)
            if one.name == INJECTED:
                notes.append(
                    f'"{item}" in layer {number} is left out: the platform brings its own fal to every runner.'
                )
            else:
                wanted.append(one)
            continue
        if item == "--pre":
            pre = True
            continue
        option, value = _option(item, items)
        options[_VALUE_OPTIONS[option]].append(value)
    return Layer(
        wanted=tuple(wanted),
        index_url=options["index_url"][-1] if options["index_url"] else None,
        extra_index_urls=tuple(options["extra_index_urls"]),
        find_links=tuple(options["find_links"]),
        pre=pre,
    )


def _option(item: str, following: list[str]) -> tuple[str, str]:
    """Split ``--name value``, ``--name=value`` or ``--name`` whose value is the next item."""
    try:
        words = shlex.split(item)
    except ValueError as error:
        raise BadRequirement(f'"{item}" cannot be read as an option ({error}). Next: check its quotes.') from error
    name, equals, value = words[0].partition("=")
    if name not in _VALUE_OPTIONS:
        raise BadRequirement(_refusal(item, name))
    values = ([value] if equals else []) + words[1:]
    if not values and following:
        values = [following.pop(0)]
    if len(values) != 1 or not values[0] or values[0].startswith("-"):
        raise BadRequirement(f'"{item}" needs exactly one value. Next: write "{name} URL" as an item of its own.')
    _check_placeholders(item, values[0])
    reachable = values[0].startswith(("https://", "http://")) or (
        _VALUE_OPTIONS[name] == "find_links" and values[0].startswith("/")
    )
    if not reachable:
        raise BadRequirement(f'"{item}": {values[0]!r} is not an http(s) address. Next: give the full URL.')
    return name, values[0]


def _refusal(item: str, name: str) -> str:
    text = f'The option "{name}" is not allowed in requirements. Allowed are {_ALLOWED}.'
    if name in ("-r", "--requirement"):
        return text + " Next: read the file in Python: requirements = open(PATH).read().splitlines()."
    if name in ("-c", "--constraint"):
        return text + ' Next: put those lines into the app\'s "constraints".'
    if name in ("-e", "--editable"):
        return text + " Next: local code travels with the app by itself; list only what an index has."
    return text + f' Next: remove "{item}".'


def parse_line(line: str) -> Wanted:
    """Read one requirement.

    Raises:
        BadRequirement: the line is neither a requirement (PEP 508) nor an https or git address.
    """
    _check_placeholders(line, line)
    if line.startswith(_URL_SCHEMES):
        if " " in line:
            raise BadRequirement(f'"{line}" holds a space. Next: one address per item.')
        return Wanted(text=line)
    try:
        requirement = Requirement(line)
    except InvalidRequirement as error:
        raise BadRequirement(
            f'"{line}" is not a requirement: {str(error).splitlines()[0]}.{_suggestion(line)}'
        ) from error
    if requirement.url is not None and requirement.url.startswith("upload:"):
        if not _UPLOAD.fullmatch(requirement.url) or not requirement.url.endswith(_UPLOADED_KINDS):
            raise BadRequirement(f'"{line}" names no file that was sent along. Next: write the path, as in ".".')
    elif requirement.url is not None and not requirement.url.startswith(_URL_SCHEMES):
        raise BadRequirement(
            f'"{line}" points at {requirement.url!r}, which only the machine that wrote it can read. '
            "Next: use an https or git+https address, or ship the code as a module beside the app."
        )
    name = canonicalize_name(requirement.name)
    return Wanted(_normal_form(requirement, name), name, None if requirement.url else requirement.specifier)


def _normal_form(requirement: Requirement, name: str) -> str:
    """Own rendering, because ``str(Requirement)`` differs between releases of packaging and this text makes keys."""
    extras = ",".join(sorted(canonicalize_name(extra) for extra in requirement.extras))
    clauses = ",".join(sorted(str(clause) for clause in requirement.specifier))
    text = name + (f"[{extras}]" if extras else "") + clauses
    if requirement.url is not None:
        text += f" @ {requirement.url}"
    return f"{text} ; {requirement.marker}" if requirement.marker is not None else text


def _suggestion(line: str) -> str:
    single = re.fullmatch(r"\s*([A-Za-z0-9._-]+)\s*=\s*([0-9][^=]*)", line)
    if single:
        return f' Next: write "{single[1]}=={single[2].strip()}".'
    if line.startswith((".", "/", "~")) or line.endswith((".whl", ".tar.gz")):
        return " Next: paths stay on your machine; give an https address, or ship the code as a module beside the app."
    if re.search(r"[A-Za-z0-9]\s+[A-Za-z]", line):
        return " Next: one requirement per item."
    return ' Next: write it like "name==1.2.3" or "name>=1,<2".'


def _check_placeholders(item: str, value: str) -> None:
    """They stand in addresses alone: what is installed must not depend on what only one owner knows."""
    before, scheme, address = value.partition("://")
    if "${" in before or "${" in _PLACEHOLDER.sub("", address) or ("${" in value and not scheme):
        raise BadRequirement(
            f'"{item}" holds a placeholder outside of an address, or a broken one. Next: write '
            '"--extra-index-url https://${TOKEN}@host/simple", and `fal secrets set TOKEN`.'
        )


def _constraint(line: str) -> Wanted:
    wanted = None if line.startswith("-") else parse_line(line)
    if wanted is None or wanted.specifier is None or "[" in wanted.text.partition(";")[0]:
        raise BadRequirement(f'Constraint "{line}" is not "name" with a version range. Next: write "name<2".')
    return wanted


def _exclude_newer(value: str | None) -> str | None:
    """One UTC instant; a plain date includes its whole day, wherever the builder's clock stands."""
    if value is None:
        return None
    text = value.strip()
    try:
        if re.fullmatch(r"\d{4}-\d{2}-\d{2}", text):
            instant = datetime.combine(date.fromisoformat(text) + timedelta(days=1), time(), UTC)
        else:
            instant = datetime.fromisoformat(text)
    except (ValueError, OverflowError) as error:
        raise BadRequirement(
            f'exclude_newer = "{value}" is not a date. Next: write "2024-06-10" or "2024-06-10T12:00:00Z".'
        ) from error
    if instant.tzinfo is None:
        instant = instant.replace(tzinfo=UTC)
    return rfc3339(instant)


def rfc3339(instant: datetime) -> str:
    """``2024-06-10T12:08:41Z``; fractions of a second are cut off."""
    return instant.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _without_comments(lines: Iterable[str]) -> Iterable[str]:
    for line in lines:
        text = re.sub(r"(^|\s)#.*$", "", line).strip()
        if "\n" in text or "\0" in text:
            raise BadRequirement(f"{text.splitlines()[0]!r} ... holds a line break. Next: one requirement per item.")
        if text:
            yield text
