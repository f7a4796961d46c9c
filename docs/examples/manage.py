"""Manage your own keys from a script. Set KEYMAN_URL and KEYMAN_TOKEN, and give the key on standard input."""

import sys

from keyman.client import Keyman, PreconditionFailed

with Keyman() as keyman:
    key = keyman.add("OPENAI", sys.stdin.readline().strip(), name="from a script")
    print("stored", key.last_4_chars)

    paused = keyman.change(key, disabled=True)
    print("now", paused.status)

    try:
        keyman.delete(key)  # refused: `key` is as it was before the pause
    except PreconditionFailed:
        keyman.delete(paused)

    print("left", sum(1 for other in keyman.keys(service="OPENAI") if other.id == key.id))
