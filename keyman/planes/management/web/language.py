"""Translates the texts of the pages, and formats their dates and numbers, for each language.

English is the language of the source: the English sentence is the key of its translations. Other languages are gettext
catalogues in `locales/<code>/keyman.po`. They are compiled in memory when the process starts, so no build step is
needed.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import cache
from gettext import GNUTranslations, NullTranslations
from io import BytesIO
from pathlib import Path

from babel import Locale
from babel.dates import format_date, format_datetime, format_timedelta
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po
from babel.numbers import format_decimal

from keyman.clock import now
from keyman.errors import Sentence

LOCALES = Path(__file__).parent / "locales"

ENGLISH = "en"

JUST_NOW = timedelta(minutes=1)
"""A shorter time than this is "just now", because a last use is recorded at most once a minute."""


DAYS_COUNT = timedelta(days=31)
"""A shorter time than this is shown in days: "in 1 week" is too vague for the expiry of a key."""

MAX_TAGS = 20
"""The number of entries of an Accept-Language header that are read. Browsers send the few languages of their user."""


class Language:
    """One language. Each method turns a value into text for a person."""

    def __init__(self, code: str, catalogue: NullTranslations) -> None:
        self.code = code
        self.catalogue = catalogue
        self._locale = Locale.parse(code)

    def say(self, text: str) -> str:
        """Translate a sentence of the source, with its values. Without a translation, return it in English."""
        if isinstance(text, Sentence):
            return self.catalogue.gettext(text.template).format(
                **{name: self.say(value) if isinstance(value, str) else value for name, value in text.values.items()}
            )
        return self.catalogue.gettext(text) if text else ""

    @property
    def own_name(self) -> str:
        """What its speakers call it, such as `Deutsch`."""
        return str(self._locale.get_display_name(self.code)).title()

    def moment(self, at: datetime) -> str:
        return format_datetime(at.astimezone(UTC), "long", locale=self._locale)

    def date(self, at: datetime) -> str:
        return format_date(at.astimezone(UTC), "medium", locale=self._locale)

    def from_now(self, at: datetime) -> str:
        """Return a text such as `3 days ago` or `in 2 months`."""
        distance = at - now()
        if abs(distance) < JUST_NOW:
            return self.say("just now")
        # By default Babel changes to the next unit at 0.85 of it, and would show six days as a week.
        if timedelta(days=1) <= abs(distance) < DAYS_COUNT:
            return format_timedelta(distance, granularity="day", threshold=5, add_direction=True, locale=self._locale)
        return format_timedelta(distance, threshold=1, add_direction=True, locale=self._locale)

    def number(self, number: int) -> str:
        return format_decimal(number, locale=self._locale)


class Languages:
    """English and every language with a catalogue."""

    def __init__(self) -> None:
        found = {path.parent.name: Language(path.parent.name, _catalogue(path)) for path in LOCALES.glob("*/keyman.po")}
        self._by_code = {ENGLISH: Language(ENGLISH, NullTranslations()), **found}

    def all(self) -> Iterable[Language]:
        return self._by_code.values()

    def choose(self, accept_language: str, chosen: str = "") -> Language:
        """Return the language `chosen`, else the best one for an Accept-Language header (RFC 9110, 12.5.4), or English
        if none fits.
        """
        if chosen in self._by_code:
            return self._by_code[chosen]
        wanted: list[tuple[float, str]] = []
        for part in accept_language.split(",")[:MAX_TAGS]:
            tag, _, weight = part.lower().partition(";")
            with suppress(ValueError):
                wanted.append((float(weight.strip().removeprefix("q=") or 1), tag.strip().partition("-")[0]))
        # Of equal weights, the first one wins. A weight of 0 means "not this language".
        known = [(weight, code) for weight, code in wanted if weight > 0 and code in self._by_code]
        return self._by_code[max(known, key=lambda pair: pair[0], default=(1.0, ENGLISH))[1]]


@cache
def _catalogue(path: Path) -> GNUTranslations:
    """Compile a catalogue, once per process. In tests a process has many applications."""
    with path.open("rb") as file:
        catalogue = read_po(file, locale=path.parent.name)
    compiled = BytesIO()
    write_mo(compiled, catalogue)
    compiled.seek(0)
    return GNUTranslations(compiled)
