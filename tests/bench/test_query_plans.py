"""The page of query plans shows each statement once with the same indexes."""

from __future__ import annotations

from bench.query_plans import PAGE, shortened

CHECK = """
```sql
SELECT tokens.id
FROM tokens
```
PostgreSQL:
```
Index Scan using pk_tokens on tokens (actual rows=1 loops=1)
  Index Cond: (id = '{id}'::bigint)
```
"""
WRITE = CHECK.replace("SELECT tokens.id", "SELECT keys.id")
ELSEWHERE = CHECK.replace("pk_tokens", "ix_tokens")


def test_a_statement_that_an_earlier_section_shows_is_named_and_not_shown_again() -> None:
    own = WRITE.format(id=1)
    sections = shortened({"First": [CHECK.format(id=1), own], "Second": [CHECK.format(id=2), WRITE.format(id=2)]})
    assert sections["First"] == [CHECK.format(id=1), own]
    assert sections["Second"] == [
        '\n`SELECT tokens.id …`: as in "First".\n',
        '\n`SELECT keys.id …`: as in "First".\n',
    ]


def test_a_statement_with_another_index_is_shown() -> None:
    sections = shortened({"First": [CHECK.format(id=1)], "Second": [ELSEWHERE.format(id=1), WRITE.format(id=1)]})
    assert sections["Second"] == [ELSEWHERE.format(id=1), WRITE.format(id=1)]


def test_a_section_of_one_statement_is_shown() -> None:
    sections = shortened({"First": [CHECK.format(id=1)], "Second": [CHECK.format(id=2)]})
    assert sections["Second"] == [CHECK.format(id=2)]


def test_the_page_is_shortened() -> None:
    text = PAGE.read_text()
    sections: dict[str, list[str]] = {}
    for section in text.split("\n## ")[2:]:
        title, _, body = section.partition("\n")
        sections[title] = [f"\n```sql\n{block}" for block in body.split("\n```sql\n")[1:]]
    assert shortened(sections) == sections
