"""What keyman says of itself: log lines (structlog) and metrics (Prometheus).

A log line carries names, codes, ids and durations, never a value that somebody sent and never an exception's message:
drivers and clients put values into theirs. Labels of metrics come from fixed sets, so that a caller cannot grow them.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import TextIO

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

log: structlog.stdlib.BoundLogger = structlog.get_logger("keyman")

MULTIPROCESS_DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"
"""Where several workers of one plane keep their counts, so that /metrics of any of them adds all of them up."""

REQUEST_BUCKETS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
"""Seconds: a listing takes 2 ms, a sign-in 150 ms (Argon2id), an operation that waits for Vault 5 s at most."""


def current_request_id() -> str | None:
    """The id of the request that is being answered; None where none is."""
    bound = structlog.contextvars.get_contextvars().get("request_id")
    return bound if isinstance(bound, str) else None


class Metrics:
    """The metrics of one application, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Histogram(
            "keyman_http_request_seconds",
            "Time from a request's arrival to the end of its answer.",
            ("method", "route", "status"),
            buckets=REQUEST_BUCKETS,
            registry=self.registry,
        )
        self.requests_in_progress = Gauge(
            "keyman_http_requests_in_progress",
            "Requests being answered now.",
            registry=self.registry,
            multiprocess_mode="livesum",
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

    def render(self) -> bytes:
        """The Prometheus text format, over all workers where there are several."""
        if MULTIPROCESS_DIRECTORY not in os.environ:
            return generate_latest(self.registry)
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]  # the library leaves it untyped
        return generate_latest(registry)

    @contextmanager
    def vault_operation(self, operation: str) -> Iterator[None]:
        start = perf_counter()
        try:
            yield
        finally:
            self.vault.labels(operation).observe(perf_counter() - start)


def frames(fault: BaseException) -> dict[str, object]:
    """An exception for the log: its class and where it happened, innermost call last; never its message."""
    places = [
        f"{frame.filename.rpartition('site-packages/')[2]}:{frame.lineno} {frame.name}"
        for frame in traceback.extract_tb(fault.__traceback__)
    ]
    return {"fault": f"{type(fault).__module__}.{type(fault).__qualname__}", "frames": places}


def configure_logging(log_format: str, level: str, stream: TextIO | None = None) -> None:
    """Send every log line of this process, those of libraries included, to `stream` (standard error)."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
    ]
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=(stream or sys.stderr).isatty(), exception_formatter=_no_traceback)
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, _without_exception],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    # These write statements with their parameters, or whole requests, at DEBUG; and a stack with values at ERROR.
    for name in (
        "sqlalchemy",
        "aiosqlite",
        "asyncpg",
        "aiohttp",
        "urllib3",
        "hvac",
        "asyncio",
        "alembic",
        "litestar",
    ):
        logging.getLogger(name).setLevel(max(logging.getLevelNamesMapping()[level.upper()], logging.WARNING))


def _without_exception(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """A library's exception keeps its class and frames and loses its message, which may hold anything."""
    record = event.get("_record")
    event.pop("exc_info", None)
    if isinstance(record, logging.LogRecord) and record.exc_info:
        if record.exc_info[1] is not None:
            event.update(frames(record.exc_info[1]))
        # What a library says of an exception often quotes it: asyncio in lines of their own, others by an argument.
        event["event"] = str(record.msg).partition("\n")[0]
        # The formatter would print the traceback after the line otherwise.
        record.exc_info = record.exc_text = None
    return event


def _no_traceback(_stream: TextIO, _info: object) -> None:
    """Console lines show `frames`, like the JSON ones."""
