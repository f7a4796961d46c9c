"""What a plain install leaves out: the extras of keyman, and what to say where one is missing.

keyman is on no package index, and the name there belongs to another program: a message names a clone or a wheel.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

from keyman.errors import MissingExtra
from keyman.version import __version__

SERVER = ("granian", "hvac")
"""Libraries that only the server uses. Both must be there: an application that has the client may use one of them."""


def missing(extra: str, library: str) -> MissingExtra:
    """Return the error for `extra`, which would have installed `library`."""
    return MissingExtra(
        f"This needs keyman's [{extra}] extra, because {library} is not installed. Run `pip install '.[{extra}]'` in a "
        f"clone of keyman, or `pip install './keyman-{__version__}-py3-none-any.whl[{extra}]'` beside a built wheel.",
        name=library,
    )


@cache
def require_server() -> None:
    """Raise MissingExtra where only the client is installed.

    The server's packages and modules call this when they are imported, so that none of them half works there, and so
    that their user reads what to install instead of the name of some library.
    """
    for library in SERVER:
        if find_spec(library) is None:
            raise missing("server", library)
