"""The name of an environment: a hash of named, normalised user inputs and of what every runner needs besides.

Pure and cheap; the gateway calls it on every deploy. The release of the platform is not an input: its code is injected
into runners, so that an upgrade rebuilds nothing. Neither are ``smoke_imports``: they follow from the app's source, and
an edited import must not rebuild gigabytes; ``build`` checks new ones in the environment that is there.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from packaging.requirements import Requirement

from envbuilder.requirements import Asked, parse

if TYPE_CHECKING:
    from fal._spec import EnvironmentSpec

#: What the process inside the environment imports besides the user's code: ranges, never pins, so that old sets of
#: packages still resolve. Change the version with the list: it is part of every key.
RUNTIME_REQUIREMENTS = (
    "fastapi>=0.110",
    "pydantic>=2.7,<3",
    "msgpack>=1.0.8,<2",
    "pillow>=10",
    "python-multipart>=0.0.9",
)
RUNTIME_REQUIREMENTS_VERSION = "1"
RUNTIME_NAMES = tuple(Requirement(line).name for line in RUNTIME_REQUIREMENTS)


def environment_key(spec: EnvironmentSpec) -> str:
    """SHA-256 (hex) of what ``spec`` asks for. Requirement order counts, the spelling of names does not.

    Raises:
        BadRequirement: a line cannot be used; its message says which and what to write instead.
    """
    return key_of(spec.python_version, parse(spec.requirements, spec.constraints, spec.exclude_newer), spec.built_anew)


def key_of(python_version: str, asked: Asked, built_anew: str = "") -> str:
    """As ``environment_key``, for inputs that are already read."""
    inputs = {
        "runtime_requirements": RUNTIME_REQUIREMENTS_VERSION,
        "python_version": python_version.strip(),
        "layers": [
            {
                "requirements": [wanted.text for wanted in layer.wanted],
                "index_url": layer.index_url,
                "extra_index_urls": list(layer.extra_index_urls),
                "find_links": list(layer.find_links),
                "pre": layer.pre,
            }
            for layer in asked.layers
        ],
        "constraints": [wanted.text for wanted in asked.constraints],
        "exclude_newer": asked.exclude_newer,
    }
    if built_anew:  # left out otherwise: keys survive releases
        inputs["built_anew"] = built_anew
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
