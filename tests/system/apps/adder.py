"""An app that a developer tests with AppClient."""

from __future__ import annotations

import fal
from fastapi import HTTPException
from pydantic import BaseModel


class Input(BaseModel):
    a: int
    b: int = 1


class Output(BaseModel):
    total: int


class Adder(fal.App):
    keep_alive = 30

    def setup(self) -> None:
        self.calls = 0

    @fal.endpoint("/")
    def add(self, input: Input) -> Output:
        """Add two numbers."""
        self.calls += 1
        return Output(total=input.a + input.b)

    @fal.endpoint("/calls")
    def count(self) -> dict[str, int]:
        return {"calls": self.calls}

    @fal.endpoint("/refuse")
    def refuse(self) -> None:
        raise HTTPException(418, "a teapot", headers={"x-pot": "tea"})


class Broken(fal.App):
    def setup(self) -> None:
        raise RuntimeError("no weights here")

    @fal.endpoint("/")
    def run(self) -> dict[str, int]:
        return {}
