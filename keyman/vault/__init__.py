"""Vault's Transit engine: how keyman reaches it, logs in, seals, and sets it up. The only package that imports hvac."""

from keyman.extras import require_server

require_server()
