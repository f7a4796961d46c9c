"""Log lines (structlog).

A log line contains names, codes, ids and durations. It never contains a value that somebody sent, nor the message of an
exception, because drivers and clients put values into theirs.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from contextlib import suppress
from contextvars import ContextVar
from math import inf
from time import monotonic
from typing import Any, TextIO

import msgspec
import structlog

log: structlog.typing.FilteringBoundLogger = structlog.get_logger("keyman")

MAX_EVENT = 200
"""Characters of a library's text that are logged."""

REQUEST_ID: ContextVar[str | None] = ContextVar("keyman_request_id", default=None)
"""The id of the current request, or None outside a request."""


def current_request_id() -> str | None:
    """Return the id of the current request, or None outside a request."""
    return REQUEST_ID.get()


def with_request_id(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Add the id of the current request to a log line. It is a processor of structlog."""
    if (request_id := REQUEST_ID.get()) is not None:
        event.setdefault("request_id", request_id)
    return event


class LineLog:
    """`log` for a line that every request writes. `log` itself takes 9 us to find out how it is configured."""

    def __init__(self) -> None:
        self._processors: object = None
        self._wrapper: object = None
        self._bound = log

    def takes(self, level: int) -> bool:
        """Return whether a line of this level is logged. Ask before you put its fields together."""
        config = structlog.get_config()
        if config["processors"] is not self._processors or config["wrapper_class"] is not self._wrapper:
            self._processors, self._wrapper, self._bound = config["processors"], config["wrapper_class"], log.bind()
        return self._bound.is_enabled_for(level)

    def log(self, level: int, event: str, **fields: object) -> None:
        """Write a line, if its level is logged."""
        if self.takes(level):
            self._bound.log(level, event, **fields)


class Repeats:
    """Decides whether something that may repeat many times a second is logged.

    It is logged at first, when it changes, when it comes back after GONE seconds, and every EVERY seconds.
    """

    EVERY = 60.0
    GONE = 10.0

    def __init__(self) -> None:
        self._said: object = None
        self._seen_at = self._logged_at = -inf

    def is_due(self, said: object, moment: float | None = None) -> bool:
        """Return whether to log `said` now. `moment` is one of `time.monotonic`."""
        moment = monotonic() if moment is None else moment
        is_same = said == self._said and moment < self._seen_at + self.GONE
        self._said, self._seen_at = said, moment
        if is_same and moment < self._logged_at + self.EVERY:
            return False
        self._logged_at = moment
        return True


def frames(fault: BaseException) -> dict[str, object]:
    """Return an exception's class and stack frames for the log, innermost call last, without its message."""
    places = [
        f"{frame.filename.rpartition('site-packages/')[2]}:{frame.lineno} {frame.name}"
        for frame in traceback.extract_tb(fault.__traceback__)
    ]
    return {"fault": f"{type(fault).__module__}.{type(fault).__qualname__}", "frames": places}


def configure_logging(log_format: str, level: str, stream: TextIO | None = None) -> None:
    """Send every log line of this process, including those of libraries, to `stream` (standard error).

    keyman's own lines do not pass through the standard library's logging, which costs several times as much. Lines on a
    terminal have colours, and with FORCE_COLOR (https://force-color.org) others too, unless NO_COLOR is set
    (https://no-color.org).
    """
    target = stream or sys.stderr
    has_colours = bool(target.isatty() or os.environ.get("FORCE_COLOR")) and not os.environ.get("NO_COLOR")
    least = logging.getLevelNamesMapping()[level.upper()]
    shared: list[structlog.typing.Processor] = [
        with_request_id,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
    ]
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer(serializer=_to_json)
        if log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=has_colours, exception_formatter=_no_traceback)
    )
    writer = _Writer(target)
    structlog.configure(
        processors=[*shared, renderer],
        logger_factory=lambda *_: writer,
        wrapper_class=structlog.make_filtering_bound_logger(least),
        cache_logger_on_first_use=False,
    )
    handler = _OfLibraries(writer)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, _cut],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
            use_get_message=False,  # the arguments are put in nowhere, so it does not matter whether they fit
        )
    )
    logging.basicConfig(handlers=[handler], level=least, force=True)
    # At DEBUG, these log statements with parameters or whole requests. At ERROR, some log a stack with values. At INFO,
    # httpx logs a line for each request, of which only the placeholders would be left.
    for name in (
        "sqlalchemy",
        "aiosqlite",
        "asyncpg",
        "aiohttp",
        "httpcore",
        "httpx",
        "urllib3",
        "hvac",
        "asyncio",
        "alembic",
        "litestar",
    ):
        logging.getLogger(name).setLevel(max(least, logging.WARNING))


class _Writer:
    """Writes lines to a stream. If it cannot, the line is lost, and the request that wrote it goes on."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, line: str) -> None:
        with suppress(OSError, ValueError):  # nobody reads it any more, its disk is full, or it was closed
            self._stream.write(f"{line}\n")
            self._stream.flush()

    debug = info = warning = error = critical = write  # structlog calls the method of the line's level


class _OfLibraries(logging.Handler):
    """Writes the lines of libraries. A line that cannot be made or written is lost.

    The handlers of the standard library print a traceback then, with the arguments of the line.
    """

    def __init__(self, writer: _Writer) -> None:
        super().__init__()
        self._writer = writer

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(Exception):  # whatever an object of a library raises when its text is asked for
            self._writer.write(self.format(record))


_ENCODER = msgspec.json.Encoder(enc_hook=repr)


def _to_json(event: dict[str, Any], **_options: object) -> str:
    """Return an event as one line of ASCII, so that no character of it can begin a new line anywhere."""
    try:
        line = _ENCODER.encode(event).decode()
    except (ValueError, OverflowError):  # half a character, or a number of more than 64 bits
        line = ""
    return line if line and line.isascii() else json.dumps(event, default=repr)


def _cut(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Keep what is safe of a library's event: its logger, the first line of its text, and the place of an exception.

    Arguments, further lines and the message of an exception may contain anything. Libraries often quote an exception
    or a whole traceback in their text: asyncio in separate lines, others as an argument. Some log an exception or
    another object instead of a text: only its class is kept.
    """
    record = event.get("_record")
    event.pop("exc_info", None)
    if isinstance(record, logging.LogRecord):
        if record.exc_info and record.exc_info[1] is not None:
            event.update(frames(record.exc_info[1]))
        said = record.msg if isinstance(record.msg, str) else type(record.msg).__qualname__
        event["event"] = said.partition("\n")[0][:MAX_EVENT]
        event["logger"] = record.name
        # Otherwise the formatter would print the traceback after the line.
        record.exc_info = record.exc_text = None
    return event


def _no_traceback(_stream: TextIO, _info: object) -> None:
    """Print no traceback: console lines show `frames`, like JSON lines."""
