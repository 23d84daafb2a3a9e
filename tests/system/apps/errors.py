"""What an app may raise, each under a path of its own."""

import os
from typing import Any

import fal
from fal.exceptions import (
    AppException,
    CUDAOutOfMemoryException,
    FieldException,
    GPUException,
    RequestCancelledException,
    catch_gpu_exceptions,
)
from fastapi import HTTPException
from pydantic import BaseModel


class Input(BaseModel):
    number: int = 0


class Errors(fal.App, keep_alive=120, max_concurrency=1):
    machine_type = "XS"

    @fal.endpoint("/")
    def run(self, request: Input) -> dict[str, int]:
        return {"pid": os.getpid()}

    @fal.endpoint("/field")
    def field(self) -> None:
        raise FieldException("number", "too odd")

    @fal.endpoint("/field/billed")
    def field_billed(self) -> None:
        raise FieldException("number", "too odd", status_code=400, type="odd", billable_units=1.5)

    @fal.endpoint("/field/whole")
    def field_whole(self) -> None:
        raise FieldException("number", "too odd", billable_units=42)

    @fal.endpoint("/field/wrong")
    def field_wrong(self) -> None:
        units: Any = "many"
        raise FieldException("number", "too odd", billable_units=units)

    @fal.endpoint("/app")
    def app(self) -> None:
        raise AppException("short and stout", 418)

    @fal.endpoint("/cancelled")
    def cancelled(self) -> None:
        raise RequestCancelledException("stopped")

    @fal.endpoint("/http")
    def http(self) -> None:
        raise HTTPException(404, "no such cat")

    @fal.endpoint("/output")
    def output(self) -> Input:
        wrong: Any = {"number": "many"}
        return wrong  # type: ignore[no-any-return]

    @fal.endpoint("/boom")
    def boom(self) -> None:
        raise KeyError("a secret of the app")

    @fal.endpoint("/gpu")
    def gpu(self) -> None:
        raise GPUException()

    @fal.endpoint("/oom")
    def oom(self) -> None:
        raise CUDAOutOfMemoryException()

    @fal.endpoint("/oom/text")
    def oom_text(self) -> None:
        raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB")

    @fal.endpoint("/gpu/text")
    def gpu_text(self) -> None:
        raise RuntimeError("an nccl call has failed")

    @fal.endpoint("/gpu/caught")
    @catch_gpu_exceptions()
    def gpu_caught(self) -> None:
        raise RuntimeError("triton cannot compile this kernel")
