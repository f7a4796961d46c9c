"""API keys: what users leave here."""
