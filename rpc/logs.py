"""Structured logs on standard error: one JSON object per line, or text for people."""

import logging
import sys
from typing import Literal

import structlog
import structlog.tracebacks


def configure(name: str, level: str = "info", format: Literal["json", "console"] = "json") -> None:
    """Send the lines of structlog, and of libraries that use `logging`, to standard error, marked with the server's
    `name`."""
    number = logging.getLevelNamesMapping()[level.upper()]

    def named(logger: object, method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        event["server"] = name
        return event

    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        named,
    ]
    final: list[structlog.typing.Processor]
    if format == "json":
        # Never with the local variables of a traceback: they contain requests and tokens.
        tracebacks = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        final = [structlog.processors.ExceptionRenderer(tracebacks), structlog.processors.JSONRenderer()]
    else:
        plain = structlog.dev.plain_traceback
        final = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)]
    structlog.configure(
        processors=[*shared, *final],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *final],
        )
    )
    # Libraries log too much below WARNING, at any level of our own.
    logging.basicConfig(handlers=[handler], level=max(number, logging.WARNING), force=True)
