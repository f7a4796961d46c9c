"""Vault's Transit engine: the connection, the login, sealing, and the set-up. Only this package imports hvac."""

from keyman.extras import require_server

require_server()
