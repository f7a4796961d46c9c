"""`keyman.quantities`."""

from __future__ import annotations

from keyman.quantities import quantity


def test_one_is_singular_and_every_other_number_is_plural() -> None:
    assert [quantity(count, "key") for count in (0, 1, 2, 1000)] == ["0 keys", "1 key", "2 keys", "1,000 keys"]
    assert [quantity(count, "entry", "entries") for count in (0, 1, 2)] == ["0 entries", "1 entry", "2 entries"]
