"""Checks of a deployment. Each module checks one part, changes nothing, and reports what it found and what to do."""

from keyman.extras import require_server

require_server()
