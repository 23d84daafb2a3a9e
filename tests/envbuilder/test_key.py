"""Properties of the key: the same wishes have one name, different wishes have different ones. Pure."""

from __future__ import annotations

import re
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from fal._spec import EnvironmentSpec
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from envbuilder.errors import BadRequirement
from envbuilder.key import RUNTIME_REQUIREMENTS, RUNTIME_REQUIREMENTS_VERSION, environment_key

names = st.from_regex(r"[a-z][a-z0-9]{0,6}([-_.][a-z0-9]{1,4})?", fullmatch=True).filter(lambda name: name != "fal")
clauses = st.sampled_from(["", "==1.0", ">=1", ">=1,<2", "~=3.2", "==1.*", "!=2"])
lines = st.builds(lambda name, clause: name + clause, names, clauses)
layers = st.lists(st.lists(lines, min_size=1, max_size=4).map(tuple), max_size=3).map(tuple)
specs = st.builds(
    EnvironmentSpec,
    python_version=st.sampled_from(["3.10", "3.11", "3.12"]),
    requirements=layers,
    constraints=st.lists(lines, max_size=3).map(tuple),
    exclude_newer=st.sampled_from([None, "2024-06-10", "2025-01-01T00:00:00Z"]),
)


def respell(line: str) -> str:
    """The same requirement as another hand would write it."""
    match = re.fullmatch(r"([a-z0-9._-]+)(.*)", line)
    assert match is not None
    name, rest = match.groups()
    return f"  {name.upper().replace('-', '_').replace('.', '_')} {rest.replace(',', ' , ')}  # why"


@settings(deadline=None)
@given(specs)
def test_spelling_does_not_count(spec: EnvironmentSpec) -> None:
    other = replace(
        spec,
        requirements=(*(tuple(respell(line) for line in layer) for layer in spec.requirements), ()),
        constraints=tuple(respell(line) for line in reversed(spec.constraints)),
        smoke_imports=("anything",),
    )
    assert environment_key(other) == environment_key(spec)


@settings(deadline=None)
@given(specs, st.data())
def test_every_input_counts(spec: EnvironmentSpec, data: st.DataObject) -> None:
    key = environment_key(spec)
    assert len(key) == 64
    assert environment_key(replace(spec, python_version="3.13")) != key
    assert environment_key(replace(spec, requirements=(*spec.requirements, ("zz-more",)))) != key
    assert environment_key(replace(spec, constraints=(*spec.constraints, "zz-more<1"))) != key
    assert environment_key(replace(spec, exclude_newer="2020-02-02")) != key
    if spec.requirements:
        assert (
            environment_key(replace(spec, requirements=(("--pre", *spec.requirements[0]), *spec.requirements[1:])))
            != key
        )
        layer = data.draw(st.sampled_from(spec.requirements))
        assume(len({respell(line) for line in layer}) > 1)
        turned = tuple(tuple(reversed(one)) if one == layer else one for one in spec.requirements)
        assume(turned != spec.requirements)
        assert environment_key(replace(spec, requirements=turned)) != key


def test_layers_are_not_a_flat_list() -> None:
    flat = EnvironmentSpec("3.11", (("a", "b"),))
    assert environment_key(flat) != environment_key(EnvironmentSpec("3.11", (("a",), ("b",))))


def test_keys_survive_releases() -> None:
    """An upgrade of the platform, or of the library that parses requirements, once renamed every environment and had
    the whole fleet rebuild. Changing this key on purpose means changing RUNTIME_REQUIREMENTS_VERSION or the inputs."""
    spec = EnvironmentSpec(
        "3.11",
        (
            (
                "Torch==2.3.0",
                "Diffusers[torch]>=0.28,<1 ; python_version >= '3.10'",
                "--extra-index-url https://x/simple",
            ),
        ),
        ("numpy<2",),
        "2024-06-10",
    )
    assert environment_key(spec) == "b21390d480ae8b32b2c8e9401d2692507a05c7b55b3fa2827125939a996eb245"


def test_runtime_requirements_change_with_their_version() -> None:
    assert (RUNTIME_REQUIREMENTS_VERSION, RUNTIME_REQUIREMENTS) == (
        "1",
        ("fastapi>=0.110", "pydantic>=2.7,<3", "msgpack>=1.0.8,<2", "pillow>=10", "python-multipart>=0.0.9"),
    )


def test_runtime_requirements_are_those_the_sdk_is_made_for() -> None:
    sdk = tomllib.loads((Path(__file__).parents[2] / "sdk" / "pyproject.toml").read_text())
    assert set(RUNTIME_REQUIREMENTS) <= set(sdk["project"]["dependencies"])


def test_an_unusable_line_has_no_key() -> None:
    with pytest.raises(BadRequirement):
        environment_key(EnvironmentSpec("3.11", (("-r requirements.txt",),)))


def test_an_environment_that_is_wanted_anew_has_a_key_of_its_own() -> None:
    """``--no-cache`` was refused. The running workers keep theirs; without it, keys are what they were."""
    spec = EnvironmentSpec("3.11", (("numpy",),))
    assert environment_key(replace(spec, built_anew="")) == environment_key(spec)
    assert environment_key(replace(spec, built_anew="1")) != environment_key(spec)
