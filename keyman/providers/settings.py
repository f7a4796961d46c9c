"""Settings: the parameters of a key that are not secret, such as the endpoint of an Azure resource.

A service defines its settings. `Setting.schema` describes them as JSON Schema, for API and pages; `check_settings`
checks the settings of a key.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Self

import msgspec

from keyman.errors import FieldError, Sentence

MAX_MEMBERS = 20
MAX_LENGTH = 300
"""The maximum number of members of settings, and of characters of one, of any service: more is refused at once."""


class Setting(msgspec.Struct, frozen=True):
    """One setting.

    `pattern` is its form. If it `names_host`, it is an address, and its host must end with one of the `allowed_hosts`
    of the service. A setting that `decides` where a key is sent can be set only together with the key. `expected` is
    the message for an invalid value; `{hosts}` in it stands for the allowed hosts.
    """

    name: str
    title: str
    description: str
    example: str
    expected: str
    pattern: str
    max_length: int
    decides: bool = False
    names_host: bool = False

    def schema(self, allowed_hosts: Sequence[str]) -> dict[str, object]:
        return {
            "type": "string",
            "title": self.title,
            "description": self.description,
            "maxLength": self.max_length,
            "pattern": f"^{self._form(allowed_hosts)}$",
            "examples": [self.example],
        }

    def accepts(self, value: str, allowed_hosts: Sequence[str]) -> bool:
        # Host names have no case. JSON Schema cannot say so: the schema has the lower case of the allowed ones.
        flags = re.IGNORECASE if self.names_host and value.startswith("https://") else 0
        return len(value) <= self.max_length and bool(re.fullmatch(self._form(allowed_hosts), value, flags | re.ASCII))

    def _form(self, allowed_hosts: Sequence[str]) -> str:
        if not self.names_host:
            return self.pattern
        return self.pattern.replace("HOSTS", f"({'|'.join(_host_form(host) for host in allowed_hosts)})")

    def fault(self, allowed_hosts: Sequence[str]) -> str:
        """Return the message for an invalid value."""
        return Sentence(self.expected, hosts=", ".join(allowed_hosts)) if self.names_host else self.expected


# A label of a host has 1 to 63 letters, digits and hyphens, and does not begin or end with a hyphen.
_LABELS = r"([A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}"


def _host_form(allowed: str) -> str:
    """Return the pattern of the hosts that an entry of `allowed_hosts` means: those below `.example.com`, or one host,
    with its port unless that is 443.
    """
    host, _, port = allowed.partition(":")
    form = host.removeprefix(".").replace(".", r"\.")
    return f"{_LABELS if host.startswith('.') else ''}{form}{f':{port}' if port else '(:443)?'}"


ENDPOINT = Setting(
    "endpoint",
    "Endpoint",
    "The address of your resource, as the portal shows it.",
    "https://my-resource.openai.azure.com",
    "must be https:// and the host of your resource, which ends in one of {hosts}; without a path or a query",
    r"https://HOSTS/?",
    max_length=265,  # a host has 253 characters at most
    decides=True,
    names_host=True,
)
API_VERSION = Setting(
    "api_version",
    "API version",
    "The version of the API that applications ask for.",
    "2024-10-21",
    "must be 1 to 32 letters, digits, dots and hyphens, such as 2024-10-21",
    r"[0-9A-Za-z.-]{1,32}",
    max_length=32,
)
_AREA = r"[a-z]{2,}(-[a-z0-9]+){1,4}"
REGION = Setting(
    "region",
    "Region",
    "The AWS region in which the key works.",
    "us-east-1",
    "must be a region in lower case, such as us-east-1",
    _AREA,
    max_length=32,
    decides=True,
)
PROJECT = Setting(
    "project",
    "Project",
    "The id of the Google Cloud project.",
    "my-project-123",
    "must be 1 to 64 lower case letters, digits, colons, dots and hyphens, such as my-project-123",
    r"[a-z0-9:.-]{1,64}",
    max_length=64,
)
LOCATION = Setting(
    "location",
    "Location",
    "The Google Cloud location in which the model runs.",
    "europe-west4",
    "must be a location in lower case, such as europe-west4",
    _AREA,
    max_length=32,
    decides=True,
)


class KeySettings(dict[str, str]):
    """The settings of a key in a request. `check_settings` checks that its service has them."""

    schema: ClassVar[dict[str, object]] = {
        "type": "object",
        "additionalProperties": {"type": "string", "maxLength": MAX_LENGTH},
        "maxProperties": MAX_MEMBERS,
        "description": "What the JSON Schema `settings` of the service in `GET /api/services` allows.",
        "examples": [{}],
    }

    @classmethod
    def parse(cls, raw: object) -> Self:
        if not isinstance(raw, dict):
            raise ValueError("must be an object")
        if len(raw) > MAX_MEMBERS or not all(
            isinstance(value, str) and len(value) <= MAX_LENGTH for value in raw.values()
        ):
            raise ValueError("must have only a few members, and short strings as their values")
        return cls(raw)


def check_settings(
    name: str, settings: Sequence[Setting], allowed_hosts: Sequence[str], given: Mapping[str, str]
) -> Iterator[FieldError]:
    """Yield a fault for each invalid member of the settings for a service. `name` is the name of the service."""
    known = {setting.name: setting for setting in settings}
    if given and not known:
        yield FieldError("settings", Sentence("must be empty, because {service} has no settings", service=name))
        return
    if not given.keys() <= known.keys():
        members = ", ".join(known)
        yield FieldError(
            "settings", Sentence("has an unknown member; {service} has {members}", service=name, members=members)
        )
    for member in known.keys() & given.keys():
        if not known[member].accepts(given[member], allowed_hosts):
            yield FieldError(f"settings.{member}", known[member].fault(allowed_hosts))


def check_destination(
    settings: Sequence[Setting], before: Mapping[str, str], after: Mapping[str, str]
) -> Iterator[FieldError]:
    """Yield a fault for each member that decides where a key is sent, and that differs.

    Only somebody who has the key may say where it is sent. Otherwise a stolen session would be enough to get the key.
    """
    for setting in settings:
        if setting.decides and before.get(setting.name) != after.get(setting.name):
            yield FieldError(
                f"settings.{setting.name}",
                "decides where the key is sent, so you can change it only together with the key: enter the key, too",
            )
