"""Users, their sessions and their personal access tokens; applications and theirs."""

from keyman.extras import require_server

require_server()
