"""Log lines (structlog) and metrics (Prometheus).

A log line contains names, codes, ids and durations. It never contains a value that somebody sent, nor the message of an
exception, because drivers and clients put values into theirs. Labels of metrics come from fixed sets, so that a caller
cannot create new ones.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from math import inf
from pathlib import Path
from time import monotonic, perf_counter
from typing import Any, TextIO

import msgspec
import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from keyman.errors import VaultReason

log: structlog.typing.FilteringBoundLogger = structlog.get_logger("keyman")

MULTIPROCESS_DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"
"""The variable with the directory where the workers of one plane keep their counts."""

REQUEST_BUCKETS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
"""Seconds. A listing takes 2 ms, a sign-in 150 ms (Argon2id), an operation that waits for Vault at most 5 s."""


MAX_EVENT = 200
"""Characters of a library's text that are logged."""

VAULT_OPERATIONS = ("capabilities", "check-key", "decrypt", "encrypt", "hmac", "lookup", "read-key", "rewrap", "rotate")
"""The label `operation` of calls to Vault. `check-key` is the comparison of Vault's key with the sentinel."""

ERROR_STATUSES = (400, 401, 403, 404, 405, 408, 409, 411, 412, 413, 415, 422, 429, 431, 500, 501, 502, 503, 504)
"""The label `status` of answers that are errors."""


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

    def log(self, level: int, event: str, **fields: object) -> None:
        """Write a line, if its level is logged."""
        config = structlog.get_config()
        if config["processors"] is not self._processors or config["wrapper_class"] is not self._wrapper:
            self._processors, self._wrapper, self._bound = config["processors"], config["wrapper_class"], log.bind()
        self._bound.log(level, event, **fields)


class Metrics:
    """The metrics of one plane, in their own registry.

    The series of every counter exist from the start, at 0: `increase()` of Prometheus does not count the first value of
    a series, so the first failure of its kind would raise no alert.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Histogram(
            "keyman_http_request_seconds",
            "Time from a request's arrival to the end of its answer.",
            ("method", "route", "status"),
            buckets=REQUEST_BUCKETS,
            registry=self.registry,
        )
        self._series: dict[tuple[str, str, int], Histogram] = {}
        self.errors = Counter(
            "keyman_http_errors_total",
            "Answers that were errors, by status.",
            ("status",),
            registry=self.registry,
        )
        for status in ERROR_STATUSES:
            self.errors.labels(str(status))
        self.requests_in_progress = Gauge(
            "keyman_http_requests_in_progress",
            "Requests being answered now.",
            registry=self.registry,
            multiprocess_mode="livesum",
        )
        self.in_progress = 0
        """What `requests_in_progress` shows. A gauge takes 4 us to change, so it follows when it is shown."""
        self.requests_in_progress.set_function(lambda: self.in_progress)
        self.open_connections = Gauge(
            "keyman_open_connections",
            "Connections of clients that are open now, idle ones included.",
            registry=self.registry,
            multiprocess_mode="livesum",
        )
        self.connections_limit = Gauge(
            "keyman_open_connections_limit",
            "Connections that may be open at once. The next ones wait to be accepted.",
            registry=self.registry,
            multiprocess_mode="livesum",
        )
        self.heartbeat = Gauge(
            "keyman_worker_heartbeat_seconds",
            "Unix time at which the worker that is the longest silent last said that it runs.",
            registry=self.registry,
            multiprocess_mode="livemin",
        )
        self.vault = Histogram(
            "keyman_vault_operation_seconds",
            "Time of one call to Vault, its retries included.",
            ("operation",),
            buckets=REQUEST_BUCKETS,
            registry=self.registry,
        )
        self.vault_failures = Counter(
            "keyman_vault_failures_total",
            "Calls to Vault that failed for good, by reason.",
            ("operation", "reason"),
            registry=self.registry,
        )
        for operation in VAULT_OPERATIONS:
            for reason in VaultReason:
                self.vault_failures.labels(operation, reason.value)
        self.vault_retries = Counter(
            "keyman_vault_retries_total",
            "Attempts that failed and were tried again.",
            registry=self.registry,
        )
        self.vault_batch = Histogram(
            "keyman_vault_encrypt_batch_items",
            "Values that went to Vault in one encrypt call.",
            buckets=(1, 2, 5, 10, 25, 50, 100, 200),
            registry=self.registry,
        )
        self.vault_connections = Gauge(
            "keyman_vault_requests_in_flight",
            "Requests to Vault that hold a connection now.",
            registry=self.registry,
            multiprocess_mode="livesum",
        )
        self.database_connections = Gauge(
            "keyman_database_connections_in_use",
            "Connections taken from the pool now.",
            registry=self.registry,
            multiprocess_mode="livesum",
        )

    def observe_request(self, method: str, route: str, status: int, seconds: float, *, is_own: bool = True) -> None:
        """Count an answered request. `method` and `route` come from fixed sets: the series of each is kept for ever.

        With `is_own` False, the status is that of another server, and no error of this plane.
        """
        series = self._series.get((method, route, status))
        if series is None:  # finding a series by its labels takes longer than the rest
            series = self._series[method, route, status] = self.requests.labels(method, route, str(status))
        series.observe(seconds)
        if status >= 400 and is_own:
            self.errors.labels(str(status)).inc()

    def write_in_progress(self) -> None:
        """Let the other workers see how many requests this one answers. It calls this once a second."""
        if MULTIPROCESS_DIRECTORY in os.environ:
            self.requests_in_progress.set(self.in_progress)

    def render(self) -> bytes:
        """Return the metrics in the Prometheus text format, summed over all workers."""
        if MULTIPROCESS_DIRECTORY not in os.environ:
            return generate_latest(self.registry)
        self.write_in_progress()
        return render_workers(Path(os.environ[MULTIPROCESS_DIRECTORY]))

    @contextmanager
    def vault_operation(self, operation: str) -> Iterator[None]:
        start = perf_counter()
        try:
            yield
        finally:
            self.vault.labels(operation).observe(perf_counter() - start)


def render_workers(directory: Path) -> bytes:
    """Return the sum of what the workers of a plane keep in this directory, in the Prometheus text format."""
    _forget_ended(directory)
    registry = CollectorRegistry()
    registry.register(_Workers(directory))
    return generate_latest(registry)


class _Workers(Collector):
    """The counts of workers. A file is empty for a moment when a worker makes it, and the library cannot read it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def collect(self) -> Iterable[Metric]:
        files = [str(file) for file in self._directory.glob("*.db") if file.stat().st_size]
        merged: Iterable[Metric] = MultiProcessCollector.merge(files)  # type: ignore[no-untyped-call]  # left untyped
        return merged


def _forget_ended(directory: Path) -> None:
    """Remove what workers that have ended would still add to the gauges, such as one that ran out of memory.

    Their counters stay: what they counted has happened.
    """
    for file in directory.glob("gauge_live*_*.db"):
        try:
            os.kill(int(file.stem.rpartition("_")[2]), 0)  # sends nothing
        except (ProcessLookupError, PermissionError):  # or its number is that of another user's process now
            file.unlink(missing_ok=True)


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
