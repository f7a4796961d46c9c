"""The last day of a key or a token in a form: a date or, without a script, a period from today."""

from __future__ import annotations

from datetime import timedelta
from typing import TypedDict

from keyman.clock import now
from keyman.errors import FieldError, InvalidRequest
from keyman.planes.management.web.forms import Form

EXPIRY_DAYS = (30, 90, 365)
"""The periods that a form offers: a month, a quarter and a year."""

DAY, PERIOD = "expires_at", "period"
"""The fields for the last day, and for a number of days instead. No days are no end."""


class ExpiryChoices(TypedDict):
    """What the field of the last day needs: today, and the last day of each period."""

    today: str
    days: dict[int, str]


def expiry_choices() -> ExpiryChoices:
    return {"today": f"{now():%Y-%m-%d}", "days": _last_days()}


def with_last_day(form: Form) -> Form:
    """Return the form with the last day of the period that was chosen. Without one, it stays as it is.

    Raises InvalidRequest if another day was typed, too.
    """
    days = {"0": "", **{str(period): day for period, day in _last_days().items()}}
    period, typed = form.text(PERIOD), form.text(DAY)
    if period not in days:
        return form
    if typed not in ("", days[period]) and not form.is_unchanged(DAY):
        raise InvalidRequest.at(FieldError(DAY, "must be a day or a period, not both"))
    return form.with_text(DAY, days[period])


def _last_days() -> dict[int, str]:
    today = now().date()
    return {period: f"{today + timedelta(days=period):%Y-%m-%d}" for period in EXPIRY_DAYS}
