"""``python -m gateway``: one gateway process, configured by its environment."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys

import structlog
import uvloop
from structlog.tracebacks import ExceptionDictTransformer
from structlog.typing import Processor

from scheduler.store import Store
from scheduler.store.errors import StoreError

from .app import create_app
from .server import listening_socket, server
from .settings import Settings, SettingsError

log = structlog.get_logger("gateway")


def configure_logging() -> None:
    """One JSON object a line on standard error; text of callers only ever inside a JSON string."""
    shared: list[Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        # without local variables: they hold credentials and callers' data
        structlog.processors.ExceptionRenderer(ExceptionDictTransformer(show_locals=False)),
    ]
    render = structlog.processors.JSONRenderer(ensure_ascii=True)
    structlog.configure(
        processors=[*shared, render],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    # uvicorn and asyncio speak through the standard library.
    handler = logging.StreamHandler(sys.stderr)
    remove = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(processors=[remove, render], foreign_pre_chain=shared))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])


async def serve(settings: Settings) -> None:
    """Serve until a signal. The first lets requests end, a second one does not.

    Raises:
        StoreError: Redis cannot be reached.
        OSError: the address is taken.
    """
    store = await Store.connect(settings.redis_url, settings.data_dir, files=settings.files, app_data=settings.app_data)
    try:
        listener = listening_socket(settings)
        # uvicorn raises the signal that stopped it once more when it is done; the end of this process is ours.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        log.info("listening", address=str(listener.getsockname()), pid=os.getpid())
        app = create_app(store, settings)
        await server(app, settings, app.stop).serve(sockets=[listener])
    finally:
        await store.close()


def main() -> int:
    """Exit status: 0 after a clean stop, 1 when it could not start, 2 for wrong settings."""
    configure_logging()
    try:
        settings = Settings.from_env(os.environ)
    except SettingsError as error:
        print(f"gateway: {error}", file=sys.stderr)
        return 2
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(settings))
    except (StoreError, OSError, ValueError) as error:
        print(f"gateway: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
