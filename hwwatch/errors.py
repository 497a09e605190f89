"""What can go wrong, each with a slug to search for and a hint that helps."""

from __future__ import annotations


class HwwatchError(Exception):
    """Base of all errors that hwwatch raises on purpose.

    The message is one line: what failed, with its value; what was found against what was
    needed; the command or call that helps; and the slug in brackets.

    Attributes
    ----------
    slug : str
        Short stable name of the failure, such as ``"no-slot"``.
    hint : str
        The call or command that helps; may be empty.
    """

    slug = "error"

    def __init__(self, message: str, *, hint: str = "", slug: str | None = None) -> None:
        if slug is not None:
            self.slug = slug
        self.hint = hint
        text = message if not hint else f"{message} {hint}"
        super().__init__(f"{text} [{self.slug}]")


class TargetError(HwwatchError, ValueError):
    """The thing to watch does not exist, is no memory, or cannot be covered by slots."""

    slug = "target"


class ConditionError(HwwatchError, ValueError):
    """A ``when`` that cannot be compiled; the message names the column, counted from 1."""

    slug = "condition"


class NoSlotError(HwwatchError, OSError):
    """More debug registers are needed than are free."""

    slug = "no-slot"


class PermissionRefused(HwwatchError, PermissionError):
    """The kernel or a sandbox refuses what watching needs."""

    slug = "permission"


class NotSupported(HwwatchError, NotImplementedError):
    """This machine, mode or policy cannot do what was asked for; the message says why."""

    slug = "not-supported"


class CanaryError(HwwatchError, OSError):
    """A breakpoint was accepted but a test access on it raised no trap."""

    slug = "canary"


class FrameError(HwwatchError, AttributeError):
    """A DataFrame that is no timeline was asked for its ``.hwwatch``.

    An AttributeError, as pandas wants it of accessors that do not fit: ``hasattr(df, "hwwatch")`` is False.
    """

    slug = "no-timeline"


class ExportError(HwwatchError, OSError):
    """A file could not be written or read back; nothing of it is left behind."""

    slug = "export"


class ExportExists(ExportError, FileExistsError):
    """There is a file of that name, and nobody said that it may be overwritten."""

    slug = "exists"


class PackageMissing(HwwatchError, ImportError):
    """A package of one of the extras is needed; the message says how to install it."""

    slug = "no-package"
