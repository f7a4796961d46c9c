"""What the log line and the metrics say of a request that was sent to a provider."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from time import perf_counter

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from keyman.clock import now

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
"""Seconds. Providers begin to answer after a tenth of a second or after a minute."""


class Transfer:
    """One request to a provider. `size` is in bytes of the answer's body. `start` is the beginning of a refusal.

    `answered_at` is when the head of the answer arrived, with its `status`. Both are None before.
    """

    __slots__ = ("_began", "_first", "answered_at", "left", "service", "size", "start", "status")

    def __init__(self, service: str, began: float) -> None:
        self.service = service
        self.status: int | None = None
        self.answered_at: datetime | None = None
        self.size = 0
        self.left = False
        self.start = bytearray()
        self._began = began
        self._first: float | None = None

    def answered(self, status: int) -> None:
        """Note that the head of the answer has arrived."""
        self.status, self.answered_at = status, now()

    def started(self) -> None:
        """Note that the answer has begun."""
        self._first = perf_counter() - self._began

    @property
    def first_byte(self) -> float | None:
        return self._first


class Measures:
    """The metrics of the gateway. Their labels are services of the catalogue and classes of statuses.

    The series of each counter exist from the start, as those of `metrics.Metrics`.
    """

    def __init__(self, registry: CollectorRegistry, services: Iterable[str]) -> None:
        self._first_byte = Histogram(
            "keyman_gateway_first_byte_seconds",
            "Time from when a request was released to the first byte of the provider's answer.",
            ("service", "status"),
            buckets=BUCKETS,
            registry=registry,
        )
        self._bytes = Counter(
            "keyman_gateway_answer_bytes_total",
            "Bytes of answers that were passed on.",
            ("service",),
            registry=registry,
        )
        self._failures = Counter(
            "keyman_gateway_unanswered_total",
            "Requests that were sent to a provider and got no answer that was passed on.",
            ("service",),
            registry=registry,
        )
        self._open = Gauge(
            "keyman_gateway_requests_open",
            "Requests to providers that are under way now.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        for service in services:
            self._bytes.labels(service)
            self._failures.labels(service)

    def begun(self, service: str) -> Transfer:
        """Count a request that is to be sent. Call `observe` once it has ended."""
        self._open.inc()
        return Transfer(service, perf_counter())

    def observe(self, transfer: Transfer) -> dict[str, object]:
        """Count a request that has ended, and return what the log line says of it."""
        self._open.dec()
        self._bytes.labels(transfer.service).inc(transfer.size)
        first = transfer.first_byte
        if transfer.status is None or first is None:
            self._failures.labels(transfer.service).inc()
        else:
            self._first_byte.labels(transfer.service, f"{transfer.status // 100}xx").observe(first)
        noted: dict[str, object] = {"service": transfer.service, "bytes": transfer.size}
        if first is not None:
            noted["first_byte_ms"] = round(first * 1000, 2)
        if transfer.left:
            noted["left"] = True
        return noted
