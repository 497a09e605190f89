"""A program of known accesses to one place: `seeded.py FLOOR_LIBRARY SEED COUNT FOLDER [watch]`.

Each access writes a value of its own, from Python, NumPy, C or the kernel, on the main thread or another.
What was written when, by which line, goes to `truth.json` in FOLDER; with `watch` the program watches itself
by hwwatch, and what that saw goes to `seen.json`. Without it, prints where things are and waits for a line.
"""

import ctypes
import json
import os
import queue
import random
import sys
import threading
import time
from pathlib import Path

import floors
import numpy as np

library, seed, count, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
floor = floors.load(Path(library))
array = np.zeros(16, np.uint64)
start = -array.ctypes.data % 64 // 8
array = array[start : start + 8]  # on a cache line
address = array.ctypes.data + 3 * 8
cells = (ctypes.c_uint64 * 8).from_address(array.ctypes.data)
view = memoryview(array).cast("B")
source = os.memfd_create("values")
os.write(source, np.arange(count + 1, dtype=np.uint64).tobytes())


# One line each: that is the line to be found.
def by_ctypes(value):
    cells[3] = value


def by_item(value):
    array[3] = value


def by_slice(value):
    array[2:5] = value


def by_copyto(value):
    np.copyto(array[3:4], value)


def by_ufunc(value):
    np.add(array[0:1], value, out=array[3:4])


def by_memmove(value):
    ctypes.memmove(address, value.to_bytes(8, "little"), 8)


def by_c(value):
    floor.floor_set(address, value)


def by_kernel(value):
    os.preadv(source, [view[24:32]], 8 * value)


WRITERS = (by_ctypes, by_item, by_slice, by_copyto, by_ufunc, by_memmove, by_c, by_kernel)
asked, done = queue.SimpleQueue(), queue.SimpleQueue()


def work():
    while (request := asked.get()) is not None:
        writer, value = request
        done.put(timed(writer, value))


def timed(writer, value):
    before = time.monotonic_ns()
    writer(value)
    return before, time.monotonic_ns()


def run():
    chance = random.Random(seed)
    truth = []
    for value in range(1, count + 1):
        writer, elsewhere = chance.choice(WRITERS), chance.random() < 0.2
        if elsewhere:
            asked.put((writer, value))
            window = done.get()
        else:
            window = timed(writer, value)
        line = writer.__code__.co_firstlineno + 1
        truth.append((value, writer.__name__, line, elsewhere, *window))
    return truth


worker = threading.Thread(target=work, name="worker")
worker.start()
seen = None
if sys.argv[5:]:
    import hwwatch

    try:
        watch = hwwatch.watch(address, nbytes=8, kernel=True)
    except hwwatch.HwwatchError:  # the kernel's accesses may not be watched here
        watch = hwwatch.watch(address, nbytes=8, kernel=False)
    truth = run()
    watch.disarm()
    frame = watch.timeline()
    values = [
        int.from_bytes(value, "little") if isinstance(value, bytes) else int(value) for value in frame["new"]
    ]
    lines = frame["line"].astype(object).where(frame["line"].notna(), None).tolist()
    seen = list(zip(values, lines, frame["file"].astype(str).tolist(), strict=True))
else:
    state = ctypes.pythonapi.PyGILState_GetThisThreadState
    state.restype = ctypes.c_void_p
    print(json.dumps({"pid": os.getpid(), "address": address, "thread_state": state()}), flush=True)
    sys.stdin.readline()
    truth = run()
asked.put(None)
worker.join()
(folder / "truth.json").write_text(json.dumps(truth))
if seen is not None:
    (folder / "seen.json").write_text(json.dumps(seen))
