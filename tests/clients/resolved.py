"""``python resolved.py PORT SCRIPT NAME``: a script on a machine whose hosts file leads fal's hosts to the platform.

Stands in for two things that tests must not take: the machine's hosts file, and port 443.
"""

import asyncio
import runpy
import socket
import sys
from pathlib import Path
from typing import Any

#: Found by the documentation's own line.
HOSTS_LINE = "127.0.0.1 fal.run "


def documented_hosts() -> list[str]:
    """The names in the line for ``/etc/hosts`` that the documentation gives."""
    page = (Path(__file__).parents[2] / "docs" / "clients.md").read_text()
    [line] = [line for line in page.splitlines() if line.startswith(HOSTS_LINE)]
    return line.split()[1:]


def lead(port: int) -> None:
    """From here on this process finds the documented names at ``port`` of loopback, and no other machine at all."""
    hosts = frozenset(documented_hosts())
    resolve = socket.getaddrinfo

    def resolved(host: Any, asked: Any, *arguments: Any, **options: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        if name in hosts and asked in (443, "443", "https"):
            return resolve("127.0.0.1", port, *arguments, **options)
        if name not in ("127.0.0.1", "localhost"):
            raise socket.gaierror(socket.EAI_NONAME, f"{name} is not in the hosts file of this test")
        return resolve(host, asked, *arguments, **options)

    connect = asyncio.BaseEventLoop.create_connection

    async def connected(loop: Any, factory: Any, host: Any = None, asked: Any = None, **options: Any) -> Any:
        # anyio looks the name up by itself, and then wants the port that the caller named
        return await connect(loop, factory, host, port if asked == 443 else asked, **options)

    setattr(socket, "getaddrinfo", resolved)  # noqa: B010 - to mypy it is a constant
    setattr(asyncio.BaseEventLoop, "create_connection", connected)  # noqa: B010


if __name__ == "__main__":
    lead(int(sys.argv[1]))
    sys.argv = sys.argv[2:]
    runpy.run_path(sys.argv[0], run_name="__main__")
