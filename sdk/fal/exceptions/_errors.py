"""The exceptions that are not about GPUs. Each carries what its answer needs; none knows HTTP frameworks."""

from __future__ import annotations


class FalServerlessException(Exception):
    """Base of the SDK's exceptions."""


class AppException(FalServerlessException):
    """Answer with ``status_code`` and ``{"detail": message}``."""

    def __init__(self, message: str, status_code: int = 500) -> None:
        super().__init__(message)
        self.message = message
        self.status_code = status_code


class RequestCancelledException(AppException):
    """The request was cancelled: answered 499."""

    def __init__(self, message: str = "Request cancelled by the client.", status_code: int = 499) -> None:
        super().__init__(message, status_code)


class FieldException(FalServerlessException):
    """Answer as if validation of one field had failed.

    Args:
        field: name of the input's field.
        message: shown to the caller.
        status_code: HTTP status.
        type: machine-readable kind, as in pydantic's errors.
        billable_units: value of the ``x-fal-billable-units`` header; 0 sends none.
    """

    def __init__(
        self,
        field: str,
        message: str,
        status_code: int = 422,
        type: str = "value_error",
        billable_units: float = 0,
    ) -> None:
        super().__init__(message)
        self.field = field
        self.message = message
        self.status_code = status_code
        self.type = type
        self.billable_units = billable_units

    def to_pydantic_format(self) -> list[dict[str, object]]:
        """The body's ``detail``."""
        return [{"loc": ["body", self.field], "msg": self.message, "type": self.type}]


class FileTooLargeError(FalServerlessException):
    """A file is over the limit."""

    def __init__(self, message: str = "A file is over the size limit.") -> None:
        super().__init__(message)
        self.message = message


class AppFileUploadException(FalServerlessException):
    """A file of the app could not be sent to the platform."""

    def __init__(self, message: str, relative_path: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.relative_path = relative_path


class UnauthenticatedException(FalServerlessException):
    """The platform did not accept the key."""

    def __init__(self, message: str = "You are not authenticated. Set FAL_KEY to a key of this platform.") -> None:
        super().__init__(message)
        self.message = message


class FalServerlessError(FalServerlessException):
    """A function could not be run on the platform, or its call was cut off.

    Args:
        status_code: HTTP status of the platform's answer; 0 where there was none.
    """

    def __init__(self, message: str, status_code: int = 0) -> None:
        super().__init__(message)
        self.message = message
        self.status_code = status_code


class FalMissingDependencyError(FalServerlessError):
    """A value needs a package that this Python does not have."""


class FalSerializationError(FalServerlessException, TypeError):
    """A value cannot travel between a caller and a function."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class UserFunctionException(FalServerlessException):
    """A function raised an exception whose class is not there on the caller's side; the message names it."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message
