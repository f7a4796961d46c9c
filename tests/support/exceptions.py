"""What an exception shows to anyone who logs, prints or inspects it."""

from __future__ import annotations

import traceback


def everything_in(fault: BaseException) -> str:
    """All that a careless handler could print of an exception: text, attributes, notes, causes, hidden contexts."""
    found, seen, waiting = [], set[int](), [fault]
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        found += [str(one), repr(one), repr(one.args), repr(vars(one)), *getattr(one, "__notes__", ())]
        found += traceback.format_exception(one, chain=False)
        waiting += [other for other in (one.__cause__, one.__context__) if other is not None]
        waiting += one.exceptions if isinstance(one, BaseExceptionGroup) else ()
    return "\n".join(found)


def stands_alone(fault: BaseException) -> bool:
    """Return True for an exception without a cause and without a context, hidden or not."""
    return fault.__cause__ is None and fault.__context__ is None
