"""The CA certificates that keyman trusts for Vault."""

from __future__ import annotations

import ssl
from pathlib import Path

from keyman.logs import log


class CertificateFile:
    """A file of CA certificates. It is read again when it changes, so that you can replace a CA while keyman runs.

    While a new file cannot be read, the certificates of the old one count.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._context = ssl.create_default_context(cafile=str(path))
        self._version = self._read_version()

    def context(self) -> ssl.SSLContext:
        version = self._read_version()
        if version is not None and version != self._version:
            self._version = version
            try:
                # A new context, so that no connection of the old one is used again.
                self._context = ssl.create_default_context(cafile=str(self._path))
                log.info("the CA of vault was replaced", variable="KEYMAN_VAULT_CACERT")
            except OSError:  # errors of OpenSSL are of this class too
                log.error("the new file with the CA of vault cannot be read", variable="KEYMAN_VAULT_CACERT")
        return self._context

    def _read_version(self) -> tuple[int, int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size
