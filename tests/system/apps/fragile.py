"""An app whose process dies of every request until it has been mended."""

from __future__ import annotations

import os
import sys

import fal
from pydantic import BaseModel


class Input(BaseModel):
    mended: str


class Output(BaseModel):
    size: int


class Fragile(fal.App):
    keep_alive = 30

    @fal.endpoint("/")
    def run(self, input: Input) -> Output:
        if not os.path.exists(input.mended):
            print("out of tiles", file=sys.stderr)
            os.abort()
        return Output(size=len(input.mended))
