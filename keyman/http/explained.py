"""`GET /problems/{slug}` as plain text, for planes without pages."""

from __future__ import annotations

from typing import Annotated

from litestar import MediaType, get
from litestar.openapi.spec import Example
from litestar.params import PathParameter

from keyman import errors
from keyman.errors import NotFound
from keyman.http.guards import PUBLIC
from keyman.http.openapi import check_query, may_answer
from keyman.http.problems import KINDS


@get(
    "/problems/{slug:str}",
    opt=PUBLIC,
    guards=[check_query],
    media_type=MediaType.TEXT,
    tags=("Problems",),
    operation_id="explainProblem",
    response_description="The explanation.",
    summary="Explain a problem",
    description="Explains the problem that has this `type`: its title, its status and what to do, in plain text.",
    responses=may_answer(errors.InvalidRequest, errors.NotFound),
)
async def explain_problem(
    slug: Annotated[str, PathParameter(description="The last part of `type`.", examples=[Example(value="not-found")])],
) -> str:
    """Return the explanation of a problem as plain text."""
    kind = KINDS.get(slug)
    if kind is None:
        raise NotFound("There is no problem of this type.")
    return f"{kind.problem.title}\n\n{kind.status} {slug}\n\n{kind.explanation}\n"
