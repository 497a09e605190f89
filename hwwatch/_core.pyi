"""The C core, by cffi. `_core/cdefs.h` describes every struct, constant and function of `lib`."""

from typing import Any

ffi: Any
lib: Any
