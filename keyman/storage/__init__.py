"""The database: engine, transactions, faults, column types, pages and statements."""

from keyman.extras import require_server

require_server()
