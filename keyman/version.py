"""The version of keyman, stated once.

The wheel's metadata, `keyman --version`, the OpenAPI document and the client's User-Agent take it from here.
"""

__version__ = "0.1.0"
