"""Why the certificate of a server is refused, in words for operators."""

from __future__ import annotations

import ssl

UNKNOWN_CA = "it is not signed by a known CA; set {cacert} to the file of a private CA"

OTHER_HOST = "it is for another host than the one in {address}"

MISTRUST = {
    9: "it is not valid yet",
    10: "it has expired",
    18: UNKNOWN_CA,
    19: UNKNOWN_CA,
    20: UNKNOWN_CA,
    21: UNKNOWN_CA,
    62: OTHER_HOST,
    64: OTHER_HOST,
}
"""Texts for OpenSSL's codes X509_V_ERR_…, for operators."""


def explain_refusal(fault: Exception, *, address: str, cacert: str) -> str:
    """Return why a certificate is refused, without OpenSSL's own message, which repeats the name of the host.

    `address` and `cacert` are the variables with the address of the server and with the file of its CA.
    """
    code = fault.verify_code if isinstance(fault, ssl.SSLCertVerificationError) else 0
    return MISTRUST.get(code, "it is not valid").format(address=address, cacert=cacert)
