"""keyman: users' API keys for LLM services, sealed by Vault."""

__version__ = "0.1.0"
