"""The runner's end of the socketpair: frames out from any thread, frames in on the event loop.

The loop reads the socket itself, so a request costs no thread switch. A watcher thread looks twice a second whether
frames lie unread (the loop is held by user code, or not running yet) and then reads in its place: that is how Ping is
answered during a long ``setup()``, and how a vanished supervisor is noticed. Leaves the meaning of messages to others.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable

from fal._runner.protocol import FrameBuffer, Log, Message, Ping, Pong, ProtocolError, ValueCall, ValueReply, encode

#: No more: the buffer of a read is allocated whole each time, and larger ones cost a mapping.
_READ_BYTES = 64 * 1024
_WRITE_BYTES = 256 * 1024
_WATCH_SECONDS = 0.5
#: How long one thread that waits for an answer reads for all before it looks whether the runner is to end.
_LISTEN_SECONDS = 0.5
#: Log frames that may wait for a slow supervisor; later ones are dropped and counted.
_MAX_WAITING_LOGS = 10_000
#: How long a runner without a supervisor may take to end by itself.
_ORPHAN_SECONDS = 10.0


class Channel:
    """Messages to and from the supervisor.

    Args:
        sock: the inherited end of the socketpair; the channel owns it from now on.
        receive: called with each message but Ping, on the event loop once attached; messages that arrive before are
            kept.
        lost: called once, on the event loop, when the supervisor's end is gone.
    """

    def __init__(self, sock: socket.socket, receive: Callable[[Message], None], lost: Callable[[], None]) -> None:
        sock.setblocking(True)
        sock.set_inheritable(False)
        self._socket = sock
        self._receive = receive
        self._lost = lost
        self._frames = FrameBuffer()
        self._early: list[Message] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._reading = threading.Lock()
        self._writing = threading.Lock()
        self._outgoing: deque[bytes] = deque()
        self._waiting_logs = 0
        self._dropped_logs = 0
        self._reads = 0
        self._closed = False
        self._told_lost = False
        self._replied = threading.Condition()
        self._replies: dict[int, ValueReply | None] = {}
        #: True in a process that user code forked: the socket is not its to use
        self.is_foreign = False
        os.register_at_fork(after_in_child=self._leave_to_parent)

    # --- out ----------------------------------------------------------------------------------------------------------

    def send(self, message: Message) -> None:
        """Send from any thread. Never waits for another thread's write: whoever is writing takes this frame along.

        That also makes it safe inside a signal handler that interrupted a write.
        """
        if self._closed:
            return
        if type(message) is Log:
            if self._waiting_logs >= _MAX_WAITING_LOGS:
                self._dropped_logs += 1
                return
            self._waiting_logs += 1
        self._outgoing.append(encode(message))
        self._flush()

    def _flush(self) -> None:
        outgoing = self._outgoing
        while outgoing and self._writing.acquire(blocking=False):
            try:
                while outgoing:
                    self._waiting_logs = 0
                    if len(outgoing) == 1:
                        self._socket.sendall(outgoing.popleft())
                    else:
                        self._socket.sendall(self._next_batch())
                if self._dropped_logs:
                    dropped, self._dropped_logs = self._dropped_logs, 0
                    note = f"[{dropped} log lines were dropped: the app prints faster than they can be stored]"
                    outgoing.append(encode(Log("WARN", note, time.time())))
            except OSError:
                self._closed = True
                outgoing.clear()
            finally:
                self._writing.release()

    def drain(self) -> None:
        """Wait until everything sent so far is written."""
        while self._outgoing and not self._closed:
            with self._writing:
                pass  # another thread is writing; what it leaves is ours
            self._flush()

    def ask(self, call: ValueCall, timeout: float) -> ValueReply:
        """Send and wait for the answer; in any thread, the loop's own included, because whoever waits reads.

        Raises:
            ConnectionError: the supervisor has gone, or this is a process that user code forked.
            TimeoutError: no answer within ``timeout`` seconds.
        """
        deadline = time.monotonic() + timeout
        self._replies[call.n] = None
        try:
            self.send(call)
            while (reply := self._replies[call.n]) is None:
                if self._closed:
                    raise ConnectionError("only the runner's own process is connected to the platform")
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError(f"the platform gave no answer within {timeout:g} s")
                self._listen_for(call.n, min(left, _LISTEN_SECONDS))
            return reply
        finally:
            del self._replies[call.n]

    def _listen_for(self, n: int, seconds: float) -> None:
        """Read, or wait for the thread that reads right now."""
        if not self._reading.acquire(blocking=False):
            with self._replied:
                if self._replies[n] is None:
                    self._replied.wait(seconds)
            return
        try:
            poller = select.poll()
            poller.register(self._socket.fileno(), select.POLLIN)
            if self._replies[n] is not None or not poller.poll(seconds * 1000):
                return
            alive = self._read(blocking=False, from_watcher=True)
        finally:
            self._reading.release()
            with self._replied:
                self._replied.notify_all()  # another one that waits may read now
        if not alive:
            self._supervisor_gone()

    def _next_batch(self) -> bytes:
        batch: list[bytes] = []
        size = 0
        while self._outgoing and size < _WRITE_BYTES:
            frame = self._outgoing.popleft()
            batch.append(frame)
            size += len(frame)
        return b"".join(batch)

    # --- in -----------------------------------------------------------------------------------------------------------

    def watch(self) -> None:
        """Start the watcher thread."""
        threading.Thread(target=self._watch, name="fal-watcher", daemon=True).start()

    def wait_for_first(self) -> Message | None:
        """Block for the first message that is not Ping; None when the supervisor has gone. Before ``attach`` only."""
        while not self._early:
            with self._reading:
                if not self._read(blocking=True):
                    return None
        return self._early.pop(0)

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """From now on the loop reads. Call on the loop."""
        with self._reading:
            self._loop = loop
            early, self._early = self._early, []
        for message in early:
            loop.call_soon(self._receive, message)
        loop.add_reader(self._socket.fileno(), self._on_readable)

    def detach(self) -> None:
        """Stop reading; sending still works."""
        if self._loop is not None:
            self._loop.remove_reader(self._socket.fileno())

    def _on_readable(self) -> None:
        if not self._reading.acquire(blocking=False):
            return  # the watcher reads right now; it hands over what it finds
        try:
            if not self._read(blocking=False):
                self.detach()
                self._supervisor_gone()
        finally:
            self._reading.release()

    def _read(self, *, blocking: bool, from_watcher: bool = False) -> bool:
        """Read once and hand out what is whole. False: the other end is closed."""
        try:
            data = self._socket.recv(_READ_BYTES, 0 if blocking else socket.MSG_DONTWAIT)
        except (BlockingIOError, InterruptedError):
            return True
        except OSError:
            return False
        if not data:
            return False
        self._reads += 1
        try:
            for message in self._frames.feed(data):
                self._hand_out(message, from_watcher)
        except ProtocolError as error:
            os.write(2, f"the supervisor cannot be understood: {error}\n".encode())
            return False  # out of step for good: the same as a supervisor that has gone
        return True

    def _hand_out(self, message: Message, from_watcher: bool) -> None:
        if type(message) is Ping:
            self.send(Pong(message.n))
        elif type(message) is ValueReply:
            with self._replied:
                if message.n in self._replies:  # else whoever asked has given up
                    self._replies[message.n] = message
                    self._replied.notify_all()
        elif self._loop is None:
            self._early.append(message)
        elif from_watcher:
            self._loop.call_soon_threadsafe(self._receive, message)
        else:
            self._receive(message)

    def _watch(self) -> None:
        pause = threading.Event()
        poller = select.poll()
        poller.register(self._socket.fileno(), select.POLLIN)
        while not self._told_lost:
            reads = self._reads
            pause.wait(_WATCH_SECONDS)
            if reads != self._reads or not poller.poll(0):
                continue
            # Unread for now. Give a loop that is merely between two turns the chance to come first.
            pause.wait(0.02)
            if reads != self._reads or not self._reading.acquire(blocking=False):
                continue
            try:
                alive = self._read(blocking=False, from_watcher=True)
            finally:
                self._reading.release()
            if not alive:
                self._supervisor_gone()

    def _supervisor_gone(self) -> None:
        """Tell the loop, and make sure that the process ends: a runner nobody talks to holds a GPU for nobody."""
        if self._told_lost:
            return
        self._told_lost = True
        self._closed = True
        if self._loop is None:
            os._exit(1)  # still starting: there is nothing to end in good order
        last_word = threading.Timer(_ORPHAN_SECONDS, os._exit, (1,))
        last_word.daemon = True
        last_word.start()
        try:
            self._loop.call_soon_threadsafe(self._end_on_loop)
        except RuntimeError:
            pass  # the loop is closed: the process is ending by itself

    def _end_on_loop(self) -> None:
        self.detach()
        self._lost()

    def _leave_to_parent(self) -> None:
        self._closed = True
        self.is_foreign = True
        self._writing = threading.Lock()
        self._reading = threading.Lock()
        self._replied = threading.Condition()
        self._outgoing.clear()
