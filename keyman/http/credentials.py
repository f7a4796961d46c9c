"""Finds the access token in the headers of a request.

A proxy in front of keyman may add its own `Authorization`, such as Basic or a JWT. Only a bearer token that begins like
one of keyman's counts; anything else is ignored, as if the header were not there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from keyman.errors import InvalidRequest
from keyman.identity.tokens import PREFIX

_BEARER = re.compile(rf"bearer +({PREFIX}.*)", re.IGNORECASE | re.DOTALL)


def bearer_token(scope: Mapping[str, Any]) -> str | None:
    """Return what claims to be an access token, or None. Raises InvalidRequest for two Authorization headers.

    Which of the two counts would depend on who reads them: the proxy, or keyman.
    """
    found = [value.decode("latin-1") for name, value in scope["headers"] if name.lower() == b"authorization"]
    if len(found) > 1:
        raise InvalidRequest("The request has more than one Authorization header. Send one.")
    claimed = _BEARER.fullmatch(found[0].strip()) if found else None
    # The prefix has lower-case letters, although the scheme may have any.
    return claimed[1] if claimed is not None and claimed[1].startswith(PREFIX) else None
