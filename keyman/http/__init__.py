"""What every plane shares over HTTP. No plane is imported here."""

from keyman.extras import require_server

require_server()
