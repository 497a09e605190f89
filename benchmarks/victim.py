"""The program that is watched from outside.

`victim.py FLOOR_LIBRARY FRAMES` prints one JSON line that says where things are, then what each line of its
input took, in ns: `hit N` makes N stores to the place under FRAMES Python frames, `idle N` goes N times round
a loop that does not touch it, `thread N` starts N threads. It imports nothing but what that takes.
"""

import ctypes
import json
import os
import sys
import threading
import time

ANY_TRACER = (0x59616D61, ctypes.c_ulong(-1))  # PR_SET_PTRACER, PR_SET_PTRACER_ANY (Yama scope 1)


def store(count):
    return floor.floor_store(address, count)  # the line that a debugger shall name


def deep(depth, count):
    return store(count) if depth <= 2 else deep(depth - 1, count)


def idle(count):
    other = [0] * 16
    start = time.perf_counter()
    for i in range(count):
        other[3] = i + 1
    return (time.perf_counter() - start) / count * 1e9


def thread(count):
    start = time.perf_counter()
    for _ in range(count):
        one = threading.Thread(target=int)
        one.start()
        one.join()
    return (time.perf_counter() - start) / count * 1e9


floor = ctypes.CDLL(sys.argv[1])
floor.floor_store.argtypes = (ctypes.c_void_p, ctypes.c_long)
floor.floor_store.restype = ctypes.c_double
ctypes.CDLL(None).prctl(*ANY_TRACER, 0, 0, 0)
place = (ctypes.c_uint64 * 16)()
address = (ctypes.addressof(place) + 63) & ~63
ctypes.memset(address, 255, 8)  # so that the first store changes it, too
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
work = {"hit": lambda count: deep(int(sys.argv[2]) - 1, count), "idle": idle, "thread": thread}
for request in sys.stdin:
    kind, size = request.split()
    print(work[kind](int(size)), flush=True)
