"""Vault's Transit engine: how keyman reaches it, logs in, seals, and sets it up. The only package that imports hvac."""
