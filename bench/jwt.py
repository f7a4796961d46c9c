"""Measures the CPU time of a JWT beyond cryptography's own verification of the same token in the same run.

    .venv/bin/python -m bench.jwt [--rounds 5]

For each algorithm it prints the time of `cryptography` for the signature only, the time of keyman for the whole token
once its key is known (`identity.jose.verified`, and the look at the issuer before it), and the difference. Only the CPU
time of this process counts, and only the best round. The look-up of the user is a query, as for every token: see
`bench.statements`.
"""

from __future__ import annotations

import json
import time

import click
from joserfc.jws import JWSRegistry
from joserfc.util import urlsafe_b64decode

from bench.timing import best
from keyman.http.credentials import claimed
from keyman.identity.jose import BEARER_TYPES, OF_OTHER_TOKENS, Rules, verified
from keyman.identity.jwks import KINDS
from tests.support.issuer import AUDIENCE, Issuer

STEPS = 300
"""Tokens in a round: 0.3 s with the slowest algorithm."""

LIMIT = 100
"""Microseconds that keyman may take beyond the verification."""


def _measure(algorithm: str, rounds: int) -> tuple[float, float]:
    issuer = Issuer("https://id.example.com", algorithm)
    token = issuer.token(scope="openid profile keys:read keys:write", email="ada@example.com", nbf=int(time.time()))
    keys = issuer.key_set()
    rules = Rules(issuer.url, AUDIENCE, BEARER_TYPES, refused=OF_OTHER_TOKENS)
    signed, _, signature = token.rpartition(".")
    message, raw = signed.encode(), urlsafe_b64decode(signature.encode())
    key = keys.find(algorithm, next(iter(issuer.keys))).key
    model = JWSRegistry.algorithms[algorithm]  # calls cryptography and nothing else
    request = {"headers": [(b"authorization", f"Bearer {token}".encode())]}

    def whole() -> None:
        found = claimed(request, lambda claim: claim == issuer.url)
        assert found.jwt is not None
        verified(found.jwt, keys, rules)

    return best(lambda: model.verify(message, raw, key), STEPS, rounds), best(whole, STEPS, rounds)


@click.command()
@click.option("--rounds", default=5, show_default=True, help="Rounds of which the best counts.")
def main(rounds: int) -> None:
    """Print the microseconds for each algorithm, and a line of JSON."""
    beyond = {}
    for algorithm in KINDS:
        alone, whole = _measure(algorithm, rounds)
        beyond[algorithm] = round(whole - alone, 1)
        click.echo(f"{algorithm:6}  cryptography {alone:7.1f}  keyman {whole:7.1f}  beyond {whole - alone:6.1f}")
    click.echo(json.dumps({"limit": LIMIT, "beyond": beyond}))


if __name__ == "__main__":
    main()
