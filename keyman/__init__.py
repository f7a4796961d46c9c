"""keyman: users' API keys for LLM services, sealed by Vault."""

from keyman.version import __version__

__all__ = ["__version__"]
