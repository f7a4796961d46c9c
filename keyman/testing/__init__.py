"""Fakes for your application's own tests: `from keyman.testing import FakeResolver`.

Your tests then need no server, no Vault and no token. Use made-up values: a fake keeps them in memory, unsealed.
"""

from keyman.testing.resolver import AsyncFakeResolver, FakeResolver, PortalCall, ReportCall, ResolveCall

__all__ = ["AsyncFakeResolver", "FakeResolver", "PortalCall", "ReportCall", "ResolveCall"]
