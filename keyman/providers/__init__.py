"""Providers of LLM services: the catalogue, how to recognise their keys, and how to mask them."""

from keyman.extras import require_server

require_server()
