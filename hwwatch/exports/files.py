"""A file appears whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from hwwatch.errors import ExportError, ExportExists

_TOO_LONG = 200  # of 255 bytes that a name may have


def check_place(path: Path, *, overwrite: bool) -> None:
    """Refuse, before any work is done, a place where no file can be written.

    Raises
    ------
    ExportError
        There is no such folder, the name stands for a folder, or none can have it.
    ExportExists
        The file exists, and `overwrite` is False.
    """
    try:
        os.lstat(path)
    except FileNotFoundError:
        pass
    except ValueError:  # a NUL
        raise ExportError(f"cannot write {str(path)!r}: no file can have such a name.") from None
    except OSError as error:
        if path.parent.is_dir():
            raise ExportError(f"cannot write {path}: {reason(error)}.") from error
    if path.is_dir():
        raise ExportError(f"cannot write {path}: it is a folder.", hint="Name a file in it.")
    if not path.parent.is_dir():
        raise ExportError(
            f"cannot write {path}: there is no folder {path.parent}.", hint="Make it, or name another."
        )
    if os.path.lexists(path) and not overwrite:
        raise _exists(path)


def _exists(path: Path) -> ExportExists:
    return ExportExists(
        f"{path} exists.", hint="Name another file, or allow it: `overwrite=True`, `--overwrite`."
    )


@contextlib.contextmanager
def replacing(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """A temporary file in the same folder, which gets the name `path` at the end of the block.

    A file that has the name already, or gets it meanwhile, stays as it is unless `overwrite`. When the block
    raises, the temporary file is removed.

    Raises
    ------
    ExportError
        It could not be written: the system's reason.
    ExportExists
    """
    path = Path(os.path.realpath(path))  # a link goes on pointing at it
    check_place(path, overwrite=overwrite)
    temporary = path.with_name(f".{path.name[-_TOO_LONG:]}.{secrets.token_hex(4)}.part")
    try:
        with open(temporary, "xb"):
            pass
        yield temporary
        _give_name(temporary, path, overwrite=overwrite)
    except OSError as error:
        if isinstance(error, ExportError):
            raise
        raise ExportError(f"cannot write {path}: {reason(error)}.") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def reason(error: OSError) -> str:
    """What the system says, in its own words: those of libraries are long and name other files."""
    return os.strerror(error.errno) if error.errno else " ".join(str(error).split())


def _give_name(temporary: Path, path: Path, *, overwrite: bool) -> None:
    if overwrite:
        with contextlib.suppress(OSError):
            shutil.copymode(path, temporary)
        os.replace(temporary, path)
        return
    try:
        os.link(temporary, path)  # unlike a renaming, this never takes the place of a file
    except FileExistsError:
        raise _exists(path) from None
    except OSError:  # a file system without links
        if os.path.lexists(path):
            raise _exists(path) from None
        os.rename(temporary, path)
