"""The processes that keyman runs as. A plane never imports another plane."""

from keyman.extras import require_server

require_server()
