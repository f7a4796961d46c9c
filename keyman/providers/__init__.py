"""LLM services: the catalogue, recognising their keys, and masking them."""

from keyman.extras import require_server

require_server()
