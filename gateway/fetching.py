"""Fetches the file that a caller's URL leads to, onto the disk as it comes; blocks a thread of its own.

Where it may lead is ``fal``'s to say, as for apps, and never to this machine itself.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from fal.toolkit._fetching import checked_address, open_url
from fal.toolkit.exceptions import DownloadError

from scheduler.store.machine import own_addresses
from scheduler.store.uploads import Incoming

from .errors import bad_request, file_too_large, overloaded

#: At once; each takes a thread for as long as its file comes, and others of the gateway's threads serve the disk.
_MOST = 4
#: ``fal files`` waits ten minutes for an answer.
_TOTAL_SECONDS = 540.0
_READ_SECONDS = 10.0
_BLOCK = 1024 * 1024


class Fetching:
    """The fetches of one gateway process.

    Args:
        most: bytes; a larger file is refused.
        allow_private: the operator permits loopback, private addresses and this machine's own.
    """

    def __init__(self, most: int, allow_private: bool) -> None:
        self._most = most
        self._allow_private = allow_private
        self._threads = ThreadPoolExecutor(_MOST, "fetching")
        self._running = 0

    async def fetch(self, url: str, incoming: Incoming) -> None:
        """The whole file.

        Raises:
            Refusal: 400 for what cannot be fetched, 413 over the limit, 503 when too many are being fetched.
            StoreFull: the disk has no room for it.
        """
        if self._running >= _MOST:
            raise overloaded(f"{_MOST} files are being fetched for callers already. Try again in a moment.")
        self._running += 1
        stop = threading.Event()
        work = asyncio.get_running_loop().run_in_executor(self._threads, self._fetch, url, incoming, stop)
        work.add_done_callback(lambda _: self._ended())
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError:
            stop.set()  # the gateway stops; its thread must not outlive it by minutes
            raise
        except DownloadError as error:
            raise bad_request(f"The file was not fetched: {error}.") from None

    def _ended(self) -> None:
        self._running -= 1

    def _fetch(self, url: str, incoming: Incoming, stop: threading.Event) -> None:
        deadline = time.monotonic() + _TOTAL_SECONDS
        with open_url(url, timeout=_READ_SECONDS, address_of=self._address) as answer:
            length = answer.length
            if length is not None and length > self._most:
                raise file_too_large(self._most)
            while block := answer.read(_BLOCK):
                if incoming.size + len(block) > self._most:
                    raise file_too_large(self._most)
                incoming.write(block)
                if stop.is_set() or time.monotonic() > deadline:
                    raise DownloadError(f"it did not come within {_TOTAL_SECONDS:.0f} s")
        if length is not None and incoming.size < length:
            raise DownloadError(f"it broke off after {incoming.size} of {length} bytes")
        incoming.close(whole=True)

    def _address(self, host: str, port: int) -> str:
        if self._allow_private:
            return str(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][4][0])
        address = checked_address(host, port)
        if ipaddress.ip_address(address) in own_addresses():
            raise DownloadError(f"{host!r} leads to {address}, which is this machine's own")
        return address
