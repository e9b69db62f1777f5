"""Logging: stable event names with key-values, one line each, on stderr.

Owns the one place where structlog and the standard library's logging are configured. Off a
terminal, or when asked, a line is one JSON object; timestamps are UTC. An exception becomes one
`error` value; its traceback is added only when debugging.
"""

from __future__ import annotations

import logging
import sys
from typing import TextIO

# structlog imports Rich wherever it is installed, for tracebacks in colours that our lines never
# hold: a tenth of the time that a daemon takes to start. Whoever imports structlog before this
# module has it with Rich, which changes nothing but that time.
_hidden = "structlog" not in sys.modules and "rich" not in sys.modules
if _hidden:
    sys.modules["rich"] = None  # type: ignore[assignment]
try:
    import structlog
    from structlog.typing import EventDict, Processor, WrappedLogger
finally:
    if _hidden:
        del sys.modules["rich"]

get_logger = structlog.get_logger

# These say in many lines, at each try, what our own events say once.
_QUIET = {
    "dramatiq": logging.ERROR,
    "pika": logging.CRITICAL,
    "redis": logging.WARNING,
    "psycopg": logging.ERROR,
}


def configure_logs(
    log_format: str | None, *, debug: bool = False, stream: TextIO | None = None
) -> None:
    """Set up logging for this process. `log_format` is `json`, `console`, or None to judge by
    whether the stream is a terminal."""
    stream = stream or sys.stderr
    as_json = log_format == "json" or (log_format is None and not stream.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
        _WithTraceback() if debug else _error_on_one_line,
    ]
    render = _renderer(as_json, stream)
    level = logging.DEBUG if debug else logging.INFO
    structlog.configure(
        processors=[*shared, *render],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(stream),
        cache_logger_on_first_use=False,
    )
    _bridge(shared, render, stream)


def _renderer(as_json: bool, stream: TextIO) -> list[Processor]:
    if as_json:
        return [_in_order, structlog.processors.JSONRenderer(default=str)]
    colors = stream.isatty()
    return [structlog.dev.ConsoleRenderer(colors=colors, timestamp_key="at", pad_event_to=24)]


def _bridge(shared: list[Processor], render: list[Processor], stream: TextIO) -> None:
    """Send what other libraries log through the same lines, from WARNING on."""
    handler = logging.StreamHandler(stream)
    strip = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
            processors=[strip, *render],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for name, level in _QUIET.items():
        logging.getLogger(name).setLevel(level)


def _in_order(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """When, how grave and what come first, for eyes that read JSON."""
    head = {name: event.pop(name) for name in ("at", "level", "event") if name in event}
    return {**head, **event}


def _error_on_one_line(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Replace an exception by `Type: first line of its message`."""
    info = event.pop("exc_info", None)
    error = sys.exc_info()[1] if info is True else info[1] if isinstance(info, tuple) else info
    if isinstance(error, BaseException):
        event.setdefault("error", one_line(error))
    return event


class _WithTraceback:
    """As above, and the whole traceback as one value."""

    def __call__(self, logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        whole = structlog.processors.format_exc_info(logger, method, dict(event))
        event = _error_on_one_line(logger, method, event)
        if "exception" in whole:
            event["exception"] = whole["exception"]
        return event


def one_line(error: BaseException) -> str:
    """An exception as one line of at most 500 characters."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:500] if text else type(error).__name__
