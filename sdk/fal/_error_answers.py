"""The one table that turns what user code raises into HTTP answers."""

from __future__ import annotations

import math
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.params import Form
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from fal.exceptions import AppException, FieldException, GPUException
from fal.exceptions._gpu import classify

#: Longer texts (a picture as a data URI, say) are not sent back to a caller whose other field was wrong.
_MAX_ECHO = 64 * 1024
#: What ``curl -d`` without a header leads to: FastAPI's own words do not say what to change.
_FORM_HINT = {
    "loc": ["header", "content-type"],
    "msg": "The body was sent as application/x-www-form-urlencoded. If it is JSON, send the header "
    '"Content-Type: application/json".',
    "type": "content_type",
}
_NOT_BILLED = {"x-fal-billable-units": "0"}


def install(app: FastAPI) -> None:
    """Make ``app`` answer errors as callers of fal expect them."""
    app.add_exception_handler(RequestValidationError, _validation_failed)
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_exception_handler(AppException, _app_exception)
    app.add_exception_handler(FieldException, _field_exception)
    app.add_exception_handler(Exception, unexpected)


async def _validation_failed(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    detail = json_safe(error.errors())
    if _sent_as_form(request):
        detail.append(_FORM_HINT)
    return JSONResponse({"detail": detail}, 422, headers=_NOT_BILLED)


def _sent_as_form(request: Request) -> bool:
    """Whether a form came where the endpoint takes none."""
    if not request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
        return False
    field = getattr(request.scope.get("route"), "body_field", None)
    return not isinstance(getattr(field, "field_info", None), Form)


async def _http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    _note(request, error)
    headers = dict(error.headers or {})
    detail: Any = error.detail
    if error.status_code == 404:
        headers = {**_NOT_BILLED, **headers}
        if detail == "Not Found":
            detail = f"Path {request.url.path} not found"
    if error.status_code in (204, 304):
        return Response(status_code=error.status_code, headers=headers)
    return JSONResponse({"detail": detail}, error.status_code, headers=headers)


async def _app_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, AppException)
    _note(request, error)
    return JSONResponse({"detail": error.message}, error.status_code)


async def _field_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, FieldException)
    if request.scope["type"] == "websocket":
        _note(request, error)
    headers = {"x-fal-billable-units": _units(error.billable_units)} if error.billable_units else None
    return JSONResponse({"detail": error.to_pydantic_format()}, error.status_code, headers=headers)


async def unexpected(request: Request, error: Exception) -> Response:
    """503 for a failed GPU, which asks the platform for a fresh runner; 500 for anything else."""
    _note(request, error)
    failure = classify(error)
    if isinstance(failure, GPUException):
        return JSONResponse({"detail": failure.message}, failure.status_code)
    return JSONResponse({"detail": "Internal Server Error"}, 500)


def _note(request: Request, error: Exception) -> None:
    """Tell the runner, which looks for a broken GPU behind whatever is answered."""
    if (failed := request.scope.get("fal.failed")) is not None:
        failed(error)


def _units(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.8f}"


def json_safe(value: Any) -> Any:
    """``value`` in a form that every JSON writer accepts: pydantic puts the caller's raw input into its errors."""
    if isinstance(value, str):
        if len(value) > _MAX_ECHO:
            return f"<{len(value)} characters>"
        return value.encode("utf-8", "replace").decode("utf-8")
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, bytes | bytearray):
        return f"<{len(value)} bytes>"
    if isinstance(value, dict):
        return {str(json_safe(key)): json_safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [json_safe(item) for item in value]
    return str(value)
