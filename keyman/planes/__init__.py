"""The planes: keyman runs each in its own processes. A plane never imports another plane."""

from keyman.extras import require_server

require_server()
