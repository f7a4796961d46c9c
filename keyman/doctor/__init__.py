"""Is everything as it must be? Each module looks at one part, changes nothing, says what it found and what to do."""

from keyman.extras import require_server

require_server()
