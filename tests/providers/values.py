"""Services and values for the tests of this directory."""

from __future__ import annotations

from hypothesis import strategies as st

from keyman.providers.catalogue import Catalogue
from keyman.providers.services import SHIPPED

CATALOGUE = Catalogue()
SERVICES = st.sampled_from([service.service for service in SHIPPED if service.credential is None])
"""The services that take a key, and not a JSON credential."""
PRINTABLE = st.characters(min_codepoint=0x21, max_codepoint=0x7E)
PREFIXES = [service.prefix or "" for service in SHIPPED] + [p for service in SHIPPED for p in service.exclusive]
VALUES = st.tuples(st.sampled_from(PREFIXES), st.text(PRINTABLE, min_size=8, max_size=60)).map("".join)
