"""How the scheduler and the jobs service log: one JSON object a line on standard error."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping

import structlog
from structlog.tracebacks import ExceptionDictTransformer


def log_to_stderr(environ: Mapping[str, str]) -> None:
    """Configure this process' logging; KEEPWARM_LOG_LEVEL names the lowest level that is written (default INFO)."""
    level = logging.getLevelName(environ.get("KEEPWARM_LOG_LEVEL", "INFO").upper())
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            # without local variables: they hold callers' data
            structlog.processors.ExceptionRenderer(ExceptionDictTransformer(show_locals=False)),
            structlog.processors.JSONRenderer(ensure_ascii=True),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level if isinstance(level, int) else logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
    )
