"""The trail: who did what and when, in entries that cannot be bent unnoticed."""

from keyman.extras import require_server

require_server()
