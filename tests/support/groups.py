"""Groups of writes that share a transaction."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from keyman.storage import group, together


@contextmanager
def groups_go_well() -> Iterator[None]:
    """Fail if a group of the block begins again with savepoints, or its members are carried out one by one.

    Nobody else would notice: each member gets its result all the same.
    """
    with (
        mock.patch.object(group, "_one_by_one", side_effect=AssertionError),
        mock.patch.object(together, "log") as log,
    ):
        yield
    assert log.info.call_args_list == []
