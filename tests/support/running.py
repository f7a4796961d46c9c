"""What the tests know of a Vault that runs for them, wherever it came from."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class RunningVault:
    """A Vault that is up, unsealed and answers at `address`; `root_token` may do everything there."""

    address: str
    root_token: str = field(repr=False)
