"""A progress bar for what takes longer than a second, where somebody sees it."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable, Iterator, Sized
from typing import Any, TypeVar

Item = TypeVar("Item", bound=Sized)

#: Hits that no machine takes a second for.
FEW = 100_000


def track(items: Iterable[Item], total: int, what: str) -> Iterator[Item]:
    """The items, with a bar on standard error or in the notebook once a second has passed.

    Parameters
    ----------
    items : iterable
        Each as long as the number of hits that it stands for.
    total : int
        Hits of all.
    what : str
        What is being made.
    """
    if total < FEW or not _seen():
        yield from items
        return
    with _bar()(total=total, desc=what, unit=" hits", unit_scale=True, delay=1, leave=False) as bar:
        for item in items:
            yield item
            bar.update(len(item))


# A terminal, or a notebook's cell; other threads never print.
def _seen() -> bool:
    if threading.current_thread() is not threading.main_thread():
        return False
    if sys.stderr is not None and sys.stderr.isatty():
        return True
    shell: Any = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return getattr(shell, "kernel", None) is not None


def _bar() -> Any:
    from tqdm.auto import tqdm

    class Bar(tqdm):  # type: ignore[misc]
        monitor_interval = 0  # its monitor would be a thread more in the user's process, for good

    return Bar
