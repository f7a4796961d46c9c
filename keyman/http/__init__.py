"""The HTTP code that all planes share. It imports no plane."""

from keyman.extras import require_server

require_server()
