"""API keys of users."""

from keyman.extras import require_server

require_server()
