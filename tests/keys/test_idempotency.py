"""`keyman.keys.idempotency`: what is stored of a request.

tests/planes/management/api/test_idempotency.py tests how a request is answered again.
"""

from __future__ import annotations

import hashlib

from hypothesis import assume, given
from hypothesis import strategies as st

from keyman.ids import UserId
from keyman.keys.idempotency import IdempotencyKey

OWNER = UserId(1)
HEADERS = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=255)


@given(header=HEADERS, body=st.binary())
def test_the_same_request_has_the_same_fingerprint(header: str, body: bytes) -> None:
    assert IdempotencyKey.parse(header, OWNER, body) == IdempotencyKey.parse(header, OWNER, body)


@given(header=HEADERS, other=HEADERS, body=st.binary(), changed=st.binary())
def test_another_key_or_another_body_has_another(header: str, other: str, body: bytes, changed: bytes) -> None:
    kept = IdempotencyKey.parse(header, OWNER, body)
    if changed != body:
        again = IdempotencyKey.parse(header, OWNER, changed)
        assert again.key_hash == kept.key_hash
        assert again.fingerprint != kept.fingerprint
    assume(other != header)
    second = IdempotencyKey.parse(other, OWNER, body)
    assert second.key_hash != kept.key_hash
    assert second.fingerprint != kept.fingerprint


@given(header=HEADERS, body=st.binary(min_size=1))
def test_nothing_that_was_sent_is_kept_and_no_guess_can_be_tested(header: str, body: bytes) -> None:
    kept = IdempotencyKey.parse(header, OWNER, body)
    assert len(kept.key_hash) == len(kept.fingerprint) == 32
    bare = {hashlib.sha256(body).digest(), hashlib.sha256(header.encode()).digest()}
    assert not bare & {kept.key_hash, kept.fingerprint}
    assert kept.key_hash != kept.fingerprint
