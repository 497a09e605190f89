"""Which watches a user means, by object, id or name."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from hwwatch.errors import TargetError
from hwwatch.letters import encodable
from hwwatch.targets.memory import a_kind
from hwwatch.watchpoints import Watch


def _is_number(which: object) -> bool:
    return isinstance(which, int | np.integer) and not isinstance(which, bool)


def meant(which: object, watches: Collection[Watch]) -> list[Watch]:
    """Those of some watches that are meant; a name comes before an id."""
    if isinstance(which, Watch):
        return [watch for watch in watches if watch is which]
    if isinstance(which, str):
        name = encodable(which)
        return [w for w in watches if w.name == name] or [w for w in watches if str(w.id) == name]
    return [watch for watch in watches if watch.id == which] if _is_number(which) else []


def unknown(which: object, watches: Collection[Watch]) -> TargetError:
    """The error where none is meant; names those there are."""
    names = ", ".join(f"{watch.id} ({watch.name})" for watch in watches) or "none"
    if isinstance(which, Watch | str) or _is_number(which):
        shown = which.name if isinstance(which, Watch) else which
        hint = "" if watches else "Make one: `%watch a[3]`, `hwwatch.watch(…)`."
        return TargetError(f"there is no watch {shown!r}; there are: {names}.", hint=hint, slug="no-watch")
    several = isinstance(which, list | tuple | set)
    return TargetError(
        f"{a_kind(which)} names no watch: a Watch, its id or its name is needed; there are: {names}.",
        hint="Give several one by one, or with a star: `*watches`." if several else "",
        slug="no-watch",
    )


def unique(name: str, watches: Collection[Watch]) -> str:
    """The name, with a number where another watch has it."""
    taken = {watch.name for watch in watches}
    if name not in taken:
        return name
    return next(f"{name} ({n})" for n in range(2, len(taken) + 3) if f"{name} ({n})" not in taken)
