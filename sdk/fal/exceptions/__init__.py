"""What user code raises to choose an answer, and what the SDK raises.

    FalServerlessException
    ├── AppException                  status and {"detail": message}
    │   └── RequestCancelledException 499
    ├── FieldException                422 in pydantic's shape
    ├── GPUException                  503: the runner is replaced
    │   └── CUDAOutOfMemoryException
    ├── FalServerlessError            a call of a function that the platform could not run
    │   └── FalMissingDependencyError
    ├── FalSerializationError         also a TypeError
    ├── UserFunctionException         stands for an exception whose class the caller does not have
    ├── FileTooLargeError, AppFileUploadException, UnauthenticatedException

Standard library only: status codes become HTTP in ``fal._error_answers``.
"""

from __future__ import annotations

from fal.exceptions._errors import (
    AppException,
    AppFileUploadException,
    FalMissingDependencyError,
    FalSerializationError,
    FalServerlessError,
    FalServerlessException,
    FieldException,
    FileTooLargeError,
    RequestCancelledException,
    UnauthenticatedException,
    UserFunctionException,
)
from fal.exceptions._gpu import CUDAOutOfMemoryException, GPUException, catch_gpu_exceptions

__all__ = [
    "AppException",
    "AppFileUploadException",
    "CUDAOutOfMemoryException",
    "FalMissingDependencyError",
    "FalSerializationError",
    "FalServerlessError",
    "FalServerlessException",
    "FieldException",
    "FileTooLargeError",
    "GPUException",
    "RequestCancelledException",
    "UnauthenticatedException",
    "UserFunctionException",
    "catch_gpu_exceptions",
]
