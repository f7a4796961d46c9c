"""Sends raw requests, and judges what comes back."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.attack.generator import Attempt

HANG = 15.0
"""Seconds in which a request is answered or its connection closed."""

CONNECTIONS = 8
"""Connections at the same time: what a plane answers without a wait. Floods are tested apart from this."""

STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})")
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)

EXAMPLES = 5
"""Faults of one sort that the report shows."""


@dataclass
class Report:
    """What came back: how often each status, and the faults with examples."""

    statuses: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    faults: dict[str, list[str]] = field(default_factory=dict)

    @property
    def sent(self) -> int:
        return sum(self.statuses.values())

    @property
    def reached(self) -> int:
        """How many requests a handler accepted."""
        return sum(count for status, count in self.statuses.items() if status.startswith("2"))

    def add(self, other: Report) -> None:
        self.statuses += other.statuses
        self.kinds += other.kinds
        for sort, examples in other.faults.items():
            self.faults.setdefault(sort, []).extend(examples)

    def note(self, attempt: Attempt, answer: bytes | None) -> None:
        """Count an answer; None is a hang, and an empty one a connection that was closed."""
        self.kinds[attempt.kind] += 1
        if answer is None:
            self.statuses["no answer"] += 1
            self._fault(f"no answer in {HANG:.0f} s", attempt)
            return
        found = STATUS.match(answer)
        status = found[1].decode() if found else "closed"
        self.statuses[status] += 1
        if status.startswith("5"):
            self._fault(f"status {status}", attempt, answer)
        if attempt.secret.encode() in answer:
            self._fault("a secret in an answer", attempt, answer)
        is_page = b"text/html" in answer.partition(b"\r\n\r\n")[0]
        if status.startswith("4") and not is_page and attempt.plain.encode() in answer:
            self._fault("an error that repeats what was sent", attempt, answer)

    def _fault(self, sort: str, attempt: Attempt, answer: bytes = b"") -> None:
        examples = self.faults.setdefault(sort, [])
        if len(examples) < EXAMPLES:
            examples.append(f"{attempt.kind}: {attempt.raw[:600]!r} -> {answer[:600]!r}")

    def lines(self) -> list[str]:
        """Return the report for a person to read."""
        return [
            f"{self.sent} requests",
            "statuses: " + ", ".join(f"{status} {count}" for status, count in sorted(self.statuses.items())),
            "kinds: " + ", ".join(f"{kind} {count}" for kind, count in sorted(self.kinds.items())),
            *(f"FAULT {sort}: {example}" for sort, examples in self.faults.items() for example in examples),
        ]


async def attack(port: int, draw: Callable[[], Attempt], count: int, seconds: float) -> Report:
    """Send `count` attempts, or as many as `seconds` allow."""
    report, left = Report(), iter(range(count))
    deadline = asyncio.get_running_loop().time() + seconds

    async def worker() -> None:
        connection = _Connection(port)
        for _ in left:
            if asyncio.get_running_loop().time() > deadline:
                break
            attempt = draw()
            report.note(attempt, await connection.exchange(attempt))
        connection.close()

    await asyncio.gather(*(worker() for _ in range(CONNECTIONS)))
    return report


class _Connection:
    """A connection. It is kept after a whole request that got a whole answer."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].transport.abort()
        self._streams = None

    async def exchange(self, attempt: Attempt) -> bytes | None:
        """Return the raw answer, empty where the server closes the connection, or None where it does neither."""
        try:
            async with asyncio.timeout(HANG):
                was_open = self._streams is not None
                answer = await self._exchange(attempt)
                if not answer and was_open:  # the server had closed the idle connection
                    answer = await self._exchange(attempt)
                return answer
        except TimeoutError:
            self.close()
            return None

    async def _exchange(self, attempt: Attempt) -> bytes:
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port, limit=2**20)
        reader, writer = self._streams
        is_kept = False
        try:
            writer.write(attempt.raw)
            if not attempt.is_well_formed:
                writer.write_eof()
            answer, is_kept = await self._read(reader, attempt)
        except (OSError, asyncio.IncompleteReadError):
            answer = b""
        if not (is_kept and attempt.is_well_formed):
            self.close()
        return answer

    async def _read(self, reader: asyncio.StreamReader, attempt: Attempt) -> tuple[bytes, bool]:
        head = await reader.readuntil(b"\r\n\r\n")
        status, length = STATUS.match(head), LENGTH.search(head)
        if attempt.is_head or (status and status[1] in (b"204", b"304")):
            return head, True
        if length is None:
            return head + await reader.read(), False
        return head + await reader.readexactly(int(length[1])), b"connection: close" not in head.lower()
