"""Metrics (Prometheus).

Labels come from fixed sets, so that a caller cannot create new ones.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from keyman.errors import VaultReason

MULTIPROCESS_DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"
"""The variable with the directory where the workers of one plane keep their counts."""

REQUEST_BUCKETS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
"""Seconds. A listing takes 2 ms, a sign-in 150 ms (Argon2id), an operation that waits for Vault at most 5 s."""

VAULT_OPERATIONS = ("capabilities", "check-key", "decrypt", "encrypt", "hmac", "lookup", "read-key", "rewrap", "rotate")
"""The label `operation` of calls to Vault. `check-key` is the comparison of Vault's key with the sentinel."""

ERROR_STATUSES = (400, 401, 403, 404, 405, 408, 409, 411, 412, 413, 415, 422, 429, 431, 500, 501, 502, 503, 504)
"""The label `status` of answers that are errors."""


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
        self.database_connections_limit = Gauge(
            "keyman_database_connections_limit",
            "Connections that the pool can have. When all are in use, the next request waits for one.",
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
