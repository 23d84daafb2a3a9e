"""The examples' own modules can be imported in these tests, as the scripts beside them do."""

from __future__ import annotations

import sys

from tests.support.platform import ROOT

# At the end, so that a short name there hides nothing.
sys.path.append(str(ROOT / "examples" / "sdxl_weights"))
