"""Which lines are allowed, what they become, and what is said about the others. Pure."""

from __future__ import annotations

import pytest

from envbuilder.errors import BadRequirement
from envbuilder.requirements import Layer, parse, parse_line


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("Torch == 2.3.0", "torch==2.3.0"),
        ("Diffusers[Torch,FLAX]>=0.42, <0.43", "diffusers[flax,torch]<0.43,>=0.42"),
        ("ruamel.yaml", "ruamel-yaml"),
        ("tomli; python_version < '3.11'", 'tomli ; python_version < "3.11"'),
        ("pkg @ https://host/pkg-1-py3-none-any.whl", "pkg @ https://host/pkg-1-py3-none-any.whl"),
        ("git+https://github.com/huggingface/diffusers.git", "git+https://github.com/huggingface/diffusers.git"),
        ("six  # for the old days", "six"),
    ],
)
def test_normal_form(line: str, text: str) -> None:
    (layer,) = parse([[line]]).layers
    assert [wanted.text for wanted in layer.wanted] == [text]


def test_options_hold_for_their_layer_in_every_spelling() -> None:
    asked = parse(
        [
            ["--extra-index-url https://a/simple", "--extra-index-url", "https://b/simple", "x", "--pre"],
            ["-f https://links", "--find-links=/srv/wheels", "-i=https://main/simple", "y"],
        ]
    )
    first, second = asked.layers
    assert first.extra_index_urls == ("https://a/simple", "https://b/simple")
    assert first.pre
    assert second == Layer(second.wanted, "https://main/simple", (), ("https://links", "/srv/wheels"), pre=False)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("-r requirements.txt", "read().splitlines()"),
        ("-c constraints.txt", '"constraints"'),
        ("-e .", "travels with the app"),
        ("--no-deps", 'remove "--no-deps"'),
        ("--hash=sha256:00", "is not allowed"),
        ("--trusted-host=evil", "is not allowed"),
        ("--index-url", "needs exactly one value"),
        ("--index-url file:///etc", "not an http(s) address"),
        ("--find-links ./wheels", "not an http(s) address"),
        ("--extra-index-url https://${TOKEN@host/simple", "placeholder"),
        ("--extra-index-url ${INDEX}", "placeholder"),
        ("six==${VERSION}", "placeholder"),
        ("torch=2.3.0", 'write "torch==2.3.0"'),
        ("torch numpy", "one requirement per item"),
        ("./pkg-1-py3-none-any.whl", "paths stay on your machine"),
        ("pkg @ file:///home/me/pkg.whl", "only the machine that wrote it"),
        ("six\nnumpy", "line break"),
        ("!!", "is not a requirement"),
    ],
)
def test_refused_lines_say_what_to_write_instead(line: str, says: str) -> None:
    with pytest.raises(BadRequirement) as caught:
        parse([[line]])
    assert says in caught.value.message


def test_fal_is_left_out_with_a_note_and_leaves_no_empty_layer() -> None:
    asked = parse([["FAL>=1.0"], ["six"]])
    assert [[w.text for w in layer.wanted] for layer in asked.layers] == [["six"]]
    assert "brings its own fal" in asked.notes[0]
    assert parse([["fal"]]).layers == ()


@pytest.mark.parametrize("line", ["six[a]<2", "six @ https://x/six.whl", "-c other.txt", "git+https://x/y"])
def test_a_constraint_is_a_name_with_a_range(line: str) -> None:
    with pytest.raises(BadRequirement, match='not "name" with a version range'):
        parse([], [line])


@pytest.mark.parametrize(
    ("written", "means"),
    [
        ("2024-06-10", "2024-06-11T00:00:00Z"),
        ("2024-06-10T12:08:41Z", "2024-06-10T12:08:41Z"),
        ("2024-06-10T12:08:41+02:00", "2024-06-10T10:08:41Z"),
    ],
)
def test_exclude_newer_is_one_instant_wherever_the_builder_stands(written: str, means: str) -> None:
    assert parse([], [], written).exclude_newer == means


@pytest.mark.parametrize("written", ["7 days", "yesterday", "2024-13-01", ""])
def test_exclude_newer_takes_dates_only(written: str) -> None:
    with pytest.raises(BadRequirement, match="is not a date"):
        parse([], [], written)


@pytest.mark.parametrize(
    ("line", "exact", "floats"),
    [
        ("a==1.0", "1.0", False),
        ("a===1.0", "1.0", False),
        ("a==1.*", None, True),
        ("a>=1,<2", None, True),
        ("a", None, True),
        ("a==1,!=1.1", None, True),
        ("git+https://x/y", None, False),
    ],
)
def test_pins_and_floating_names(line: str, exact: str | None, floats: bool) -> None:
    wanted = parse_line(line)
    assert (wanted.exact_version, wanted.floats) == (exact, floats)
