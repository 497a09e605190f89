"""Where a panel is shown: a Jupyter kernel with its front end, or a terminal."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

VIEW = "application/vnd.jupyter.widget-view+json"


def shell() -> Any:
    """The IPython shell of this process, or None."""
    module: Any = sys.modules.get("IPython")
    return module.get_ipython() if module is not None else None


def kernel() -> Any:
    """The Jupyter kernel that this process is, or None."""
    return getattr(shell(), "kernel", None)


def namespace() -> dict[str, Any]:
    """Where expressions that are typed on the panel are looked up."""
    found = shell()
    space: dict[str, Any] = found.user_ns if found is not None else vars(sys.modules["__main__"])
    return space  # no copy, which would count a reference to each object


def publish(data: dict[str, Any], display_id: str, *, update: bool = False) -> None:
    """Show a bundle below the running cell, or change what an earlier one shows."""
    from IPython.display import publish_display_data

    show: Any = publish_display_data
    show(data, transient={"display_id": display_id}, update=update)


def answer_at_once(widget: Any) -> None:
    """Have a widget's clicks come in while a cell runs.

    JupyterLab sends them to a subshell, a thread of its own, if the kernel has any (ipykernel 7). From there
    ipykernel 7.4 sends them on to the shell that used the comm last, which is the busy one, unless the comm
    lacks this function (ipykernel.kernelbase.Kernel.shell_channel_thread_main).
    """
    comm = widget.comm
    if hasattr(comm, "_reply_subshell_for"):
        comm._reply_subshell_for = None


class Cells:
    """Tells when a cell runs, and calls back when it has ended."""

    def __init__(self) -> None:
        self.running = False
        self._ended: list[Callable[[], None]] = []
        self._registered: Any = None
        self._at_once: bool | None = None

    def follow(self, ended: Callable[[], None]) -> None:
        """Have `ended` called at the end of each cell; to be called from within one."""
        here = shell()
        if here is not None and self._registered is None:
            here.events.register("pre_run_cell", self._begin)
            here.events.register("post_run_cell", self._end)
            self._registered = here
            self.running = threading.current_thread() is threading.main_thread()
        if ended not in self._ended:
            self._ended.append(ended)

    def leave(self, ended: Callable[[], None]) -> None:
        """No longer."""
        if ended in self._ended:
            self._ended.remove(ended)
        if not self._ended and self._registered is not None:
            events = self._registered.events
            for name, callback in (("pre_run_cell", self._begin), ("post_run_cell", self._end)):
                if callback in events.callbacks[name]:
                    events.unregister(name, callback)
            self._registered, self.running = None, False

    def _begin(self, *_: object) -> None:
        self.running = True

    def _end(self, *_: object) -> None:
        self.running = False
        for ended in list(self._ended):
            ended()

    def clicked(self) -> None:
        """Note on which thread a click came in: on the main thread it had to wait for running cells."""
        self._at_once = threading.current_thread() is not threading.main_thread()

    @property
    def queued(self) -> bool:
        """Whether a click now would wait for the end of a cell."""
        if not self.running:
            return False
        if self._at_once is None:  # the first click will show it
            return not getattr(kernel(), "_supports_kernel_subshells", False)
        return not self._at_once


#: Of this process, which has one shell.
cells = Cells()
