"""`/livez`, `/readyz`, `/metrics`, and the pages for readers. Readiness with a Vault in trouble: tests/faults."""

from __future__ import annotations

import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.planes.management.api.harness import STATUSES, ApiPlane, problem, store

pytestmark = pytest.mark.anyio


async def test_livez_says_that_the_process_runs(shared: ApiPlane) -> None:
    answer = await shared.client().get("/livez")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


async def test_readyz_says_ok_with_both_checks(shared: ApiPlane) -> None:
    answer = await shared.client().get("/readyz")
    assert answer.status_code == 200
    assert answer.json() == {"status": "ok", "checks": {"database": "ok", "vault": "ok"}}


async def test_metrics_are_prometheus_text_with_labels_from_fixed_sets(shared: ApiPlane) -> None:
    ada = await shared.user()
    key = await store(ada)
    for target in (f"/api/keys/{key['id']}", "/api/keys/canary", "/canary", "/problems/canary", "/api/keys?q=canary"):
        await ada.get(target)
    await shared.wire("CANARY", b"/canary")
    answer = await shared.client().get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    assert "canary" not in answer.text.lower()
    families = {family.name: family for family in text_string_to_metric_families(answer.text)}
    assert {
        "keyman_http_request_seconds",
        "keyman_http_requests_in_progress",
        "keyman_vault_operation_seconds",
        "keyman_vault_failures",
        "keyman_database_connections_in_use",
    } <= families.keys()
    labels = [sample.labels for sample in families["keyman_http_request_seconds"].samples]
    assert {label["method"] for label in labels} <= {
        "GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "other"
    }  # fmt: skip
    routes = {label["route"] for label in labels}
    assert {"/api/keys", "/api/keys/{key_id}", "unmatched"} <= {re.sub(r":\w+}", "}", route) for route in routes}
    assert str(key["id"]) not in "".join(routes)


async def test_a_request_that_was_answered_is_no_longer_in_progress(shared: ApiPlane) -> None:
    await shared.client().get("/nothing")
    text = (await shared.client().get("/metrics")).text
    assert "keyman_http_requests_in_progress 1.0" in text  # this one
    assert "keyman_database_connections_in_use 0.0" in text


@pytest.mark.parametrize("slug", STATUSES)
async def test_every_type_of_problem_has_a_page_that_explains_it(sqlite_plane: ApiPlane, slug: str) -> None:
    answer = await sqlite_plane.client().get(f"/problems/{slug}")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert slug in answer.text
    assert str(STATUSES[slug]) in answer.text
    assert "unsafe" not in answer.headers["content-security-policy"]


async def test_the_index_of_problems_leads_to_all_of_them(shared: ApiPlane) -> None:
    answer = await shared.client().get("/problems")
    assert set(re.findall(r'href="/problems/([^"]+)"', answer.text)) >= STATUSES.keys()


async def test_an_unknown_type_of_problem_is_a_problem_that_repeats_nothing(shared: ApiPlane) -> None:
    for path in ("/problems/canary", "/problems/canary<script>", "/problems/canary/canary"):
        answer = await shared.client().get(path)
        problem(answer, "not-found")
        assert "canary" not in answer.text


async def test_pages_load_nothing_from_another_host(sqlite_plane: ApiPlane) -> None:
    visitor = sqlite_plane.client()
    for path in ("/docs", "/problems", "/problems/internal"):
        page = await visitor.get(path)
        assert page.status_code == 200
        loaded = re.findall(r'(?:src|href)="([^"#]+)"', page.text)
        assert loaded
        for target in loaded:
            assert target.startswith("/")
            assert not target.startswith("//")
            assert (await visitor.get(target)).status_code in (200, 303)
        policy = page.headers["content-security-policy"]
        assert "http" not in policy
        assert "unsafe-eval" not in policy
        assert policy.startswith("default-src 'none'")
