"""What an exception shows to whoever logs, prints or inspects it."""

from __future__ import annotations

import traceback


def shown(fault: BaseException) -> str:
    """All of its text: the traceback as every tool prints it, arguments and attributes, along the whole chain."""
    parts = ["".join(traceback.format_exception(fault))]
    seen: set[int] = set()
    waiting: list[BaseException | None] = [fault]
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        parts += [str(one), repr(one), repr(one.args), repr(vars(one))]
        waiting += [one.__cause__, one.__context__]
    return "\n".join(parts)


def stands_alone(fault: BaseException) -> bool:
    """It carries no other exception along, not even a hidden one."""
    return fault.__cause__ is None and fault.__context__ is None
