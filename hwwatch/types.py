"""The nouns that layers hand to each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

if TYPE_CHECKING:
    from hwwatch.targets.model import Piece

#: Which accesses trap: ``"w"`` writes, ``"rw"`` reads and writes, ``"r"`` reads, ``"x"`` execution.
Mode = Literal["w", "rw", "r", "x"]
MODES: tuple[str, ...] = get_args(Mode)

#: What `hwwatch.plot` draws, and against what.
KINDS = ("values", "by_line", "by_instruction", "elements")
XS = ("time", "seq")


@dataclass(frozen=True)
class Return:
    """Policy: return to the caller at once with `value` (at a function's entry)."""

    value: int | float


@dataclass(frozen=True)
class Goto:
    """Policy: go on at `address` (an int, a symbol such as ``"libm.so.6!cos"``, or a C function)."""

    address: Any


#: What the handler does before the thread goes on.
#: The last two are native functions: an address, or what ctypes, cffi or numba have of one.
Policy = str | Return | Goto | int | Callable[..., Any]


@dataclass(frozen=True)
class ArmRequest:
    """What a backend is to arm.

    Attributes
    ----------
    pieces : sequence of Piece
        1 to 4, ascending.
    wanted : sequence of int
        For each piece which of its bytes are watched, as bits; the others are neighbours.
    mode : {"w", "rw", "r", "x"}
    frames : int
        Python frames wanted for each hit.
    kernel : bool
        Include accesses made by the kernel on the program's behalf.
    follow_fork : bool
        Forked children inherit.
    shared : bool
        The bytes lie in a mapping that other processes share.
    settings : struct hww_settings *
        Policy, condition, limit.
    """

    pieces: Sequence[Piece]
    wanted: Sequence[int]
    mode: str
    frames: int
    kernel: bool
    follow_fork: bool
    shared: bool
    settings: Any


@dataclass
class Armed:
    """An armed request: what the backend needs to change or end it, and what really happened.

    `threads` have events of their own. `unsure`: so many might still have been creating others, which then
    lack theirs. `gap`: a change of mode could not be covered. `unreached`: processes that it did not reach.
    """

    index: int
    generation: int
    request: ArmRequest
    threads: int = 0
    unsure: int = 0
    gap: bool = False
    unreached: tuple[str, ...] = ()


class Backend(Protocol):
    """A way to be told of accesses. All share handler, ring and frames; they differ in how they arm."""

    name: str
    #: Whether the CPU's hits are counted by somebody other than the handler: only then can one be missing.
    counting: bool

    def slots_free(self, most: int = 4) -> int:
        """Debug registers that are free on the calling thread; not looked for beyond `most`."""

    def canary(self, mode: str, nbytes: int, kernel: bool) -> None:
        """Prove by an access of that kind that traps arrive; raises CanaryError or what refused it."""

    def kernel_visible(self) -> bool:
        """Whether accesses by the kernel can be included."""

    def arm(self, request: ArmRequest) -> Armed:
        """Arm all threads, or none and raise."""

    def disarm(self, armed: Armed) -> None:
        """End it in all threads and children; hits in flight are still recorded."""

    def enable(self, armed: Armed, on: bool) -> None:
        """Pause or resume; slots stay taken."""

    def configure(self, armed: Armed, settings: Any) -> None:
        """Put a new ``struct hww_settings *`` in force, in all threads and children at once."""

    def modify(self, armed: Armed, mode: str) -> Armed:
        """Change the mode of a data watch without a moment in which nothing is seen."""

    def alive(self, armed: Armed) -> bool:
        """False once it was disarmed, here or by the handler at its limit."""

    def counts(self, armed: Armed) -> tuple[int, ...]:
        """Accesses counted by the kernel or CPU so far, for each piece."""

    def threads(self, armed: Armed) -> frozenset[int]:
        """Threads armed by an event of their own."""

    def blind(self, armed: Armed) -> dict[int, str]:
        """Living threads whose accesses do not trap, and why not."""

    def notes(self, armed: Armed) -> tuple[str, ...]:
        """What else may have been missed, one line each."""
