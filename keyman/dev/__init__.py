"""`keyman dev` runs a real OpenBao, SQLite and both planes on one machine."""

from keyman.extras import require_server

require_server()
