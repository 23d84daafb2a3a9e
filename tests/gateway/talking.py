"""Raw bytes to a gateway and what it makes of them: answers, log lines, and whether it still serves others."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import pytest
from structlog.testing import capture_logs

from tests.gateway.platform import RunningGateway


class Answer(NamedTuple):
    """One answer on a connection; names of headers in lower case."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes


def talk(address: tuple[str, int], *sent: bytes, timeout: float = 20) -> list[Answer]:
    """Everything that is answered to some bytes until the gateway closes; it closes what it does not understand, what
    never gets complete and what idles."""
    received = b""
    with socket.create_connection(address, timeout) as connection, suppress(ConnectionError):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for part in sent:
            connection.sendall(part)
        while block := connection.recv(65536):
            received += block
    return list(answers(received))


def answers(received: bytes) -> Iterator[Answer]:
    """The answers in what came over one connection. Fails when it is anything else."""
    while received:
        head, end, received = received.partition(b"\r\n\r\n")
        assert end, f"an answer without an end: {head[:200]!r}"
        lines = head.split(b"\r\n")
        assert lines[0].startswith(b"HTTP/1.1 "), lines[0][:200]
        headers = {name.lower(): value for name, _, value in (line.partition(b": ") for line in lines[1:])}
        status = int(lines[0].split()[1])
        if status == 100:
            continue
        size = int(headers.get(b"content-length", b"0"))
        if headers.get(b"transfer-encoding") == b"chunked":
            size = received.index(b"0\r\n\r\n") + 5
        yield Answer(status, headers, received[:size])
        received = received[size:]


@contextmanager
def logged(caplog: pytest.LogCaptureFixture) -> Iterator[list[Any]]:
    """The lines of the log, filled in at the end. Fails when one has a traceback."""
    caplog.clear()
    lines: list[Any] = []
    with capture_logs() as entries, caplog.at_level(logging.WARNING):
        yield lines
    lines += [*entries, *(record.getMessage() for record in caplog.records)]
    assert not any(entry.get("exc_info") for entry in entries), lines
    assert not any(record.exc_info for record in caplog.records), lines


@contextmanager
def at_most_one_line(caplog: pytest.LogCaptureFixture, what: object) -> Iterator[None]:
    """Fails when more than one line is logged: callers must not fill the disk."""
    with logged(caplog) as lines:
        yield
    assert len(lines) <= 1, (what, lines)


def serves_others(gateway: RunningGateway, app: str) -> None:
    """Fails when a call beside it is not answered."""
    with gateway.client() as client:
        assert client.post(f"/{app}", content=b"{}").content == b"{}"
