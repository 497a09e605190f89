"""The layout that Python reads is the one that the compiler made."""

from __future__ import annotations

import numpy as np
import pytest

from hwwatch import records
from hwwatch.code import source
from hwwatch.native import ffi, lib

SHARED = {"struct hww_record": records.RECORD, "struct hww_extension": records.EXTENSION}
PACKED = {
    "struct hww_code": source._CODE,
    "struct hww_stack": source._STACK,
    "struct hww_frame": source._FRAME,
}


@pytest.mark.parametrize("struct", SHARED)
def test_numpy_dtype(struct: str) -> None:
    dtype = SHARED[struct]
    assert dtype.itemsize == ffi.sizeof(struct) == lib.HWW_SLOT
    fields = dict(ffi.typeof(struct).fields)
    assert list(dtype.names) == list(fields)
    for name, field in fields.items():
        assert dtype.fields[name][1] == field.offset == ffi.offsetof(struct, name), name
        assert dtype.fields[name][0].itemsize == ffi.sizeof(field.type), name
        if field.type.kind == "array":
            assert dtype.fields[name][0].shape == (field.type.length,)
        else:
            assert dtype.fields[name][0].kind == "u"


@pytest.mark.parametrize("struct", PACKED)
def test_struct_format(struct: str) -> None:
    assert PACKED[struct].size == ffi.sizeof(struct)
    width = {"Q": 8, "I": 4, "i": 4, "H": 2, "B": 1}
    offset, offsets = 0, []
    for letter in PACKED[struct].format.lstrip("<"):
        offsets.append(offset)
        offset += width[letter]
    assert offsets == [field.offset for _, field in ffi.typeof(struct).fields]


def test_a_record_is_one_slot() -> None:
    assert lib.HWW_SLOT == 128
    inline = records.RECORD["values"].shape[0] + records.EXTENSION["values"].shape[0]
    assert inline == lib.HWW_REGISTERS
    snapshot = records.RECORD["old_bytes"].itemsize + records.EXTENSION["old_bytes"].itemsize
    assert snapshot == lib.HWW_SNAPSHOT == 8 * lib.HWW_MAX_PIECES


def test_flag_bits_do_not_overlap() -> None:
    names = [name for name in dir(lib) if name.startswith("HWW_HIT_")]
    bits = [getattr(lib, name) for name in names]
    assert len(names) >= 10
    assert np.bitwise_or.reduce(bits) == sum(bits)
    assert all(bit & (bit - 1) == 0 for bit in bits)
    tags = [lib.HWW_TAG_RESERVED, lib.HWW_TAG_COMMITTED, lib.HWW_TAG_EXTENSION]
    assert sum(tags) == (1 << lib.HWW_TAG_LAP_SHIFT) - 1


def test_watch_table_fits_its_mask() -> None:
    assert lib.HWW_MAX_WATCHES == 64  # one bit each in hww_active
    assert ffi.typeof("struct hww_shared").fields[-1][1].type.length == lib.HWW_MAX_WATCHES
