"""Titles have one case style: a name is in Title Case, and a sentence is written as one."""

from __future__ import annotations

import re

from keyman.planes.management.web.pages import TEMPLATES

SMALL = {"a", "an", "and", "as", "for", "of", "or", "the", "to"}
"""Words that Title Case leaves small."""

SENTENCES = {
    "No applications yet",
    "No keys yet",
    "No matching keys",
    "No tokens yet",
    "Not all keys were changed",
    "Nothing to show",
    "Sign in",  # also the words of the button, as other software knows them
    "Sign in again",
    "Sign up",
    "This link does not work",
    "You have left",
}


def titles() -> set[str]:
    """What templates have as a heading or as the title of a page, without questions and what has values."""
    found: set[str] = set()
    for path in TEMPLATES.glob("*.html"):
        text = path.read_text()
        places = re.findall(
            r"<h[12][^>]*>.*?</h[12]>|\{% block title %\}.*?\{% endblock %\}|\{% set heading = .*?%\}", text
        )
        found.update(words for place in places for words in re.findall(r'_\("([^"]*)"', place))
    return {words for words in found if not words.endswith("?") and "%(" not in words}


def test_a_title_is_in_title_case_or_is_a_sentence() -> None:
    assert {"API Keys", "Access Tokens", "Add a Key", "Connected Sign-Ins"} <= titles()
    wrong = {
        words
        for words in titles() - SENTENCES
        if any(word[0].islower() and word not in SMALL for word in re.split(r"[ -]", words))
    }
    assert wrong == set()


def test_the_sentences_are_titles() -> None:
    assert titles() >= SENTENCES
