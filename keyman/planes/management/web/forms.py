"""Forms: what a browser sends of one, and what stands beside its fields when it is refused."""

from __future__ import annotations

from datetime import date, datetime, time
from typing import Self
from urllib.parse import parse_qs

from keyman.errors import Conflict, FieldError, InvalidRequest, UnsupportedMediaType
from keyman.http.requests import AnyRequest
from keyman.identity.principals import Principal
from keyman.values import FutureTime

MAX_FIELDS = 40
"""No form of ours has half as many."""


class Form:
    """The fields of a form that was sent. A field that is missing reads as an empty one, as browsers leave out some."""

    def __init__(self, fields: dict[str, list[str]]) -> None:
        self._fields = fields

    @classmethod
    async def read(cls, request: AnyRequest) -> Self:
        """Raises UnsupportedMediaType, InvalidRequest for a body that is no form, and Conflict for a form that was made
        for another account: two can sign in after each other in two windows of one browser.
        """
        media_type = request.headers.get("content-type", "").lower().partition(";")[0].strip()
        if media_type != "application/x-www-form-urlencoded":
            raise UnsupportedMediaType("A form is sent as application/x-www-form-urlencoded.")
        body = await request.body()
        try:
            form = cls(
                parse_qs(body.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=MAX_FIELDS)
            )
        except ValueError:
            # The error's own text would quote the body.
            raise InvalidRequest.at(FieldError("", "The form is not well-formed.")) from None
        caller: Principal | None = request.scope.get("user")
        # Without the field it is no form of a page of ours: a script, which acts for itself.
        if caller is not None and form.text("account") not in ("", str(caller.user_id)):
            raise Conflict(
                "Somebody else has signed in with this browser meanwhile. Nothing was done; reload the page."
            )
        return form

    def text(self, name: str) -> str:
        return self._fields.get(name, [""])[-1]

    def all(self, name: str) -> list[str]:
        return self._fields.get(name, [])

    def leaves(self, name: str) -> bool:
        """True when a field was sent as it was shown, which a hidden field beside it tells."""
        return self.all(f"shown_{name}") == [self.text(name)]

    def given(self, *names: str) -> dict[str, object]:
        """The fields of these names that are not empty, for `values.decode`."""
        return {name: self.text(name) for name in names if self.text(name)}


class LastDay(FutureTime):
    """The last day on which something is good, in UTC: a date, as a browser's date field sends it."""

    @classmethod
    def parse(cls, raw: object) -> Self:
        try:
            day = date.fromisoformat(raw if isinstance(raw, str) else "")
        except ValueError:
            raise ValueError("must be a date, such as 2030-01-31") from None
        # To the second, so that a field that is shown again holds the day that was chosen.
        return super().parse(f"{datetime.combine(day, time(23, 59, 59)).isoformat()}Z")
