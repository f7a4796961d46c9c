"""Reads the fields of the forms that a browser sends."""

from __future__ import annotations

from datetime import date, datetime, time
from typing import Self
from urllib.parse import parse_qs

from keyman.errors import Conflict, FieldError, InvalidRequest, UnsupportedMediaType
from keyman.http.requests import AnyRequest, read_body
from keyman.identity.principals import Principal
from keyman.values import FutureTime

MAX_FIELDS = 40
"""The maximum number of fields of a form. No form of keyman has half as many."""


class Form:
    """The fields of a form. A missing field reads as empty, because browsers do not send all fields."""

    def __init__(self, fields: dict[str, list[str]]) -> None:
        self._fields = fields

    @classmethod
    async def read(cls, request: AnyRequest, max_fields: int = MAX_FIELDS) -> Self:
        """Read the form in the body, which has at most `max_fields` fields.

        Raises Unauthenticated if the caller was revoked before the body arrived, UnsupportedMediaType, InvalidRequest
        for a body that is not a form, and Conflict for a form of another account: two people can sign in one after the
        other in two windows of one browser.
        """
        media_type = request.headers.get("content-type", "").lower().partition(";")[0].strip()
        if media_type != "application/x-www-form-urlencoded":
            raise UnsupportedMediaType("The form must be sent as application/x-www-form-urlencoded.")
        body = await read_body(request)
        try:
            form = cls(
                parse_qs(body.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=max_fields)
            )
        except ValueError:
            # The original error is left out, because its text quotes the body.
            raise InvalidRequest.at(FieldError("", "The form is malformed.")) from None
        caller: Principal | None = request.scope.get("user")
        # Forms of keyman's pages have this field. Without it, the sender is a script, which knows whose session it has.
        if caller is not None and form.text("account") not in ("", str(caller.user_id)):
            raise Conflict("Somebody else has signed in with this browser. Nothing was changed. Reload the page.")
        return form

    def text(self, name: str) -> str:
        return self._fields.get(name, [""])[-1]

    def all(self, name: str) -> list[str]:
        return self._fields.get(name, [])

    def with_text(self, name: str, text: str) -> Self:
        """Return a copy in which this field has this text."""
        return type(self)({**self._fields, name: [text]})

    def is_unchanged(self, name: str) -> bool:
        """Return True if the user did not change a field. A hidden field beside it contains the shown value."""
        return self.all(f"shown_{name}") == [self.text(name)]

    def filled(self, *names: str, **more: str) -> dict[str, object]:
        """Return the fields with these names that are not empty, and `more`, for `decode`."""
        return {**{name: self.text(name) for name in names if self.text(name)}, **more}


class LastDay(FutureTime):
    """The last day, in UTC, on which a key or a token is valid: a date in the form of a browser's date field."""

    @classmethod
    def parse(cls, raw: object) -> Self:
        try:
            day = date.fromisoformat(raw if isinstance(raw, str) else "")
        except ValueError:
            raise ValueError("must be a date, such as 2030-01-31") from None
        # One second before midnight, so that the field shows the chosen day again.
        return super().parse(f"{datetime.combine(day, time(23, 59, 59)).isoformat()}Z")
