"""The decorators that mark methods of an app as routes, and how the marks are collected from a class.

Owns path rules and the marks. Leaves turning them into FastAPI routes to ``fal._routes``. Standard library only.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from fal._spec import EndpointSpec

Handler = TypeVar("Handler", bound=Callable[..., Any])
_MARK = "route_signature"


@dataclass(frozen=True)
class HealthCheck:
    """How the platform asks a runner whether it still works. Times in seconds.

    Args:
        start_period_seconds: failures within this time after the start do not count; raised to ``startup_timeout``.
        timeout_seconds: an answer later than this is a failure.
        failure_threshold: consecutive failures after which the runner is replaced.
        call_regularly: ask every 15 s; otherwise only when an answer asks for a check.
        method: HTTP method of the check.
    """

    start_period_seconds: int | None = None
    timeout_seconds: int | None = None
    failure_threshold: int | None = None
    call_regularly: bool | None = None
    method: Literal["GET", "POST"] = "POST"


@dataclass(frozen=True)
class RealtimeOptions:
    """What ``@fal.realtime`` was given; see there."""

    buffering: int | None = None
    session_timeout: float | None = None
    input_modal: Any = None
    output_modal: Any = None
    max_batch_size: int = 1
    content_type: str = "application/msgpack"
    encode_message: Callable[[Any], bytes] | None = None
    decode_message: Callable[[bytes], Any] | None = None


@dataclass(frozen=True)
class RouteSignature:
    """The mark that a decorator leaves on a method."""

    path: str
    is_websocket: bool = False
    health_check: HealthCheck | None = None
    billing: Any = None
    realtime: RealtimeOptions | None = None


def _mark(method: Handler, signature: RouteSignature) -> Handler:
    if hasattr(method, _MARK):
        raise ValueError(
            f"{getattr(method, '__name__', 'method')} is already an endpoint at {getattr(method, _MARK).path!r}; "
            "a method can have one route: write a second method that calls the first"
        )
    if not signature.path.startswith("/"):
        raise ValueError(f"the endpoint path {signature.path!r} must begin with '/': write {'/' + signature.path!r}")
    setattr(method, _MARK, signature)
    return method


def endpoint(
    path: str, *, is_websocket: bool = False, health_check: HealthCheck | None = None, billing: Any = None
) -> Callable[[Handler], Handler]:
    """Serve a method as ``POST path``.

    Args:
        path: begins with ``/``; may nest, such as ``/images/upscale``.
        is_websocket: the method is ``async`` and takes a ``WebSocket`` instead.
        health_check: makes this route the app's health check; at most one per app.
        billing: accepted for compatibility; published in the app's metadata.

    Raises:
        ValueError: the method already has a route, or ``path`` does not begin with ``/``.
    """
    if is_websocket and health_check is not None:
        raise ValueError(f"the websocket endpoint {path!r} cannot be a health check: mark a POST endpoint instead")
    signature = RouteSignature(path, is_websocket=is_websocket, health_check=health_check, billing=billing)

    def mark(method: Handler) -> Handler:
        return _mark(method, signature)

    return mark


def realtime(
    path: str,
    *,
    buffering: int | None = None,
    session_timeout: float | None = None,
    input_modal: Any = None,
    output_modal: Any = None,
    max_batch_size: int = 1,
    content_type: str = "application/msgpack",
    encode_message: Callable[[Any], bytes] | None = None,
    decode_message: Callable[[bytes], Any] | None = None,
) -> Callable[[Handler], Handler]:
    """Serve a method over a websocket session of typed frames.

    Args:
        path: begins with ``/``.
        buffering: how many inputs may wait while the method runs; the oldest is dropped. ``None``: none is dropped, and
            a caller who sends faster than the method runs is held back.
        session_timeout: seconds that a session waits for an input; then it ends.
        input_modal, output_modal: pydantic models, when annotations are not to be used.
        max_batch_size: inputs handed to one call, of those that wait and that the first one's ``can_batch(next, n)``
            takes, if it has one.
        content_type, encode_message, decode_message: how frames are written and read; msgpack by default.

    Raises:
        ValueError: the method already has a route, or ``path`` does not begin with ``/``.
    """
    options = RealtimeOptions(
        buffering=buffering,
        session_timeout=session_timeout,
        input_modal=input_modal,
        output_modal=output_modal,
        max_batch_size=max_batch_size,
        content_type=content_type,
        encode_message=encode_message,
        decode_message=decode_message,
    )

    def mark(method: Handler) -> Handler:
        return _mark(method, RouteSignature(path, is_websocket=True, realtime=options))

    return mark


def collect(cls: type) -> dict[str, RouteSignature]:
    """The marked methods of ``cls`` and its parents, by method name, sorted by path.

    Raises:
        ValueError: two methods share a path and kind, or more than one is a health check.
    """
    found: dict[str, RouteSignature] = {}
    for name, member in inspect.getmembers(cls, callable):
        signature = getattr(member, _MARK, None)
        if isinstance(signature, RouteSignature):
            found[name] = signature
    taken: dict[tuple[str, bool], str] = {}
    for name, signature in found.items():
        other = taken.setdefault((signature.path, signature.is_websocket), name)
        if other != name:
            raise ValueError(
                f"{cls.__name__}.{other} and {cls.__name__}.{name} both serve {signature.path!r}: "
                "give one of them another path"
            )
    checks = [name for name, signature in found.items() if signature.health_check is not None]
    if len(checks) > 1:
        raise ValueError(f"{cls.__name__} marks {' and '.join(checks)} as health checks: an app can have one")
    return dict(sorted(found.items(), key=lambda item: item[1].path))


def check_websockets(cls: type) -> None:
    """Refuse a plain websocket endpoint that could not serve one.

    Raises:
        ValueError: it is not ``async``, or takes no ``WebSocket``.
    """
    for name, signature in collect(cls).items():
        if not signature.is_websocket or signature.realtime is not None:
            continue
        method = getattr(cls, name)
        kinds = {_name_of(p.annotation) for p in inspect.signature(method).parameters.values()}
        if not inspect.iscoroutinefunction(method) or "WebSocket" not in kinds:
            raise ValueError(
                f"{cls.__name__}.{name} serves a websocket at {signature.path!r}: write "
                f"`async def {name}(self, socket: WebSocket)`, with WebSocket from fastapi"
            )


def _name_of(annotation: Any) -> str:
    """The last part of a type's name, also where annotations are text."""
    name = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
    return str(name).rpartition(".")[2]


def endpoint_specs(cls: type) -> tuple[EndpointSpec, ...]:
    """The routes of ``cls`` in the form that the platform stores."""
    return tuple(EndpointSpec(s.path, name, s.is_websocket) for name, s in collect(cls).items())


def resolved_signature(handler: Callable[..., Any]) -> inspect.Signature | None:
    """The signature with real types; None when a name in it cannot be resolved here (FastAPI then tries its way)."""
    try:
        hints = typing.get_type_hints(handler, include_extras=True)
    except (NameError, TypeError, AttributeError):
        return None
    signature = inspect.signature(handler)
    parameters = [p.replace(annotation=hints.get(name, p.annotation)) for name, p in signature.parameters.items()]
    return signature.replace(parameters=parameters, return_annotation=hints.get("return", signature.return_annotation))
