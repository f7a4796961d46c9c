"""Providers of LLM services: the catalogue, how to recognise their keys, and how to mask them."""
