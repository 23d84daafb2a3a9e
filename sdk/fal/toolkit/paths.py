"""Where apps keep what should outlive a runner."""

from __future__ import annotations

import os
from pathlib import PurePosixPath

FAL_PERSISTENT_DIR = PurePosixPath(os.environ.get("FAL_DATA_DIR") or "/data")
FAL_MODEL_WEIGHTS_DIR = FAL_PERSISTENT_DIR / ".fal" / "model_weights"
FAL_REPOSITORY_DIR = FAL_PERSISTENT_DIR / ".fal" / "repos"
