"""The program that is watched from outside: on each line of its input, `N` stores to one place, ns a store out.

`victim.py FLOOR_LIBRARY FRAMES` prints one JSON line that says where things are, then serves. It stores
under FRAMES Python frames, and imports nothing but what that takes.
"""

import ctypes
import json
import os
import sys

ANY_TRACER = (0x59616D61, ctypes.c_ulong(-1))  # PR_SET_PTRACER, PR_SET_PTRACER_ANY (Yama scope 1)


def store(count):
    return floor.floor_store(address, count)  # the line that a debugger shall name


def deep(depth, count):
    return store(count) if depth <= 2 else deep(depth - 1, count)


floor = ctypes.CDLL(sys.argv[1])
floor.floor_store.argtypes = (ctypes.c_void_p, ctypes.c_long)
floor.floor_store.restype = ctypes.c_double
ctypes.CDLL(None).prctl(*ANY_TRACER, 0, 0, 0)
place = (ctypes.c_uint64 * 16)()
address = (ctypes.addressof(place) + 63) & ~63
state = ctypes.pythonapi.PyGILState_GetThisThreadState
state.restype = ctypes.c_void_p
print(
    json.dumps(
        {
            "pid": os.getpid(),
            "address": address,
            "thread_state": state(),
            "version": sys.version_info[:2],
            "line": store.__code__.co_firstlineno + 1,
        }
    ),
    flush=True,
)
for request in sys.stdin:
    print(deep(int(sys.argv[2]) - 1, int(request)), flush=True)
