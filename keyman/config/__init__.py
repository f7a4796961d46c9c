"""Settings, read once from the environment. Each module reads one group of variables."""

from keyman.extras import require_server

require_server()
