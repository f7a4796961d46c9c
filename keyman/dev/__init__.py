"""`keyman dev` runs a real OpenBao, SQLite and all planes on one machine."""

from keyman.extras import require_server

require_server()
