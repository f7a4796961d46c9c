"""API keys: what users leave here."""

from keyman.extras import require_server

require_server()
