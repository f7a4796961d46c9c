"""Logging that a test configures and that is restored afterwards."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import structlog
import structlog.testing
from structlog.typing import Processor

from keyman.logs import REQUEST_ID


@contextmanager
def own_logging() -> Iterator[None]:
    """Let the block configure logging. Afterwards the handlers, levels and structlog's configuration are as before."""
    root, before = logging.getLogger(), structlog.get_config()
    handlers, level = root.handlers[:], root.level
    levels = {name: logging.getLogger(name).level for name in list(logging.Logger.manager.loggerDict)}
    root.handlers[:] = []  # configure_logging closes the handlers that it finds, and these are pytest's
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name in list(logging.Logger.manager.loggerDict):
        logging.getLogger(name).setLevel(levels.get(name, logging.NOTSET))
    structlog.configure(**before)


@contextmanager
def capture_logs(processors: Iterable[Processor] = ()) -> Iterator[list[MutableMapping[str, Any]]]:
    """Collect keyman's log lines of every level, whatever level another test of this process has configured.

    `processors` see each line first.
    """
    before = structlog.get_config()["wrapper_class"]
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.NOTSET))
    try:
        with structlog.testing.capture_logs(processors) as lines:
            yield lines
    finally:
        structlog.configure(wrapper_class=before)


@contextmanager
def request_id_is(request_id: str) -> Iterator[None]:
    """Let the block be part of the request with this id."""
    before = REQUEST_ID.set(request_id)
    try:
        yield
    finally:
        REQUEST_ID.reset(before)
