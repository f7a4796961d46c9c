"""Settings: read once from the environment, each group of variables in a module."""

from keyman.extras import require_server

require_server()
