"""Users with their sessions and personal access tokens, and applications with their tokens."""

from keyman.extras import require_server

require_server()
