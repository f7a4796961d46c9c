"""The audit log: who did what and when, in entries that nobody can change unnoticed."""

from keyman.extras import require_server

require_server()
